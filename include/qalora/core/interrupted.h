// A stop of which the person was told what it leaves behind.
#pragma once

#include "qalora/core/error.h"

namespace qalora {

// Any other Interrupted means that nothing was written.
class InterruptedAndTold : public Interrupted {
 public:
  explicit InterruptedAndTold(const Interrupted& stop) : Interrupted(stop) {}
};

}  // namespace qalora
