// A picture of a run: training loss (raw and smoothed) and held-out loss over steps, as a self-contained SVG.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace qalora::train {

// events: lines of metrics.jsonl. -> SVG text; with fewer than two losses a picture that says so.
std::string loss_curve_svg(const std::vector<nlohmann::json>& events, const std::string& title);

}  // namespace qalora::train
