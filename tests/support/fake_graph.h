// Recorded graphs of the fake accelerator: what the device was asked to do, with the addresses and the numbers it was
// given.
#pragma once

#include <ATen/core/ivalue.h>

#include <functional>
#include <memory>

#include "qalora/tensor/accelerator.h"

namespace qalora::test {

bool recording();
void add_step(std::function<void()> step);  // of the graph that is being recorded
// Throws while a graph is recorded: the host would have to wait for the device, which has not begun.
void refuse_to_wait(const std::string& what);

// An argument or a result as a graph remembers it. Device tensors that were there before the recording are not kept
// alive: calling it throws when their memory is gone. Numbers on the CPU stay what they are now.
using Held = std::function<c10::IValue()>;
Held hold(const c10::IValue& value);

// Undoes what `work` did to the device's memory: as on a GPU, only replay() computes.
std::unique_ptr<tensor::RecordedGraph> record_graph(int device, const std::function<void()>& work);

}  // namespace qalora::test
