#include "qalora/train/loss_curve.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "qalora/core/format.h"

namespace qalora::train {

namespace {

constexpr double kWidth = 720, kHeight = 400, kLeft = 64, kRight = 20, kTop = 40, kBottom = 48;
constexpr double kSmoothing = 0.9;  // weight of the past in the smoothed curve

struct Point {
  double step, loss;
};

struct Scale {
  double low, high;
  double from, to;  // pixels
  double at(double value) const { return from + (to - from) * (value - low) / (high - low); }
};

std::vector<Point> losses_of(const std::vector<nlohmann::json>& events, const char* kind) {
  std::vector<Point> points;
  for (const auto& event : events) {
    const bool matches = event.value("event", "") == kind && event.contains("loss") && event.at("loss").is_number();
    if (matches) points.push_back({event.value("step", 0.0), event.at("loss").get<double>()});
  }
  return points;
}

std::vector<Point> smoothed(const std::vector<Point>& points) {
  std::vector<Point> result;
  double mean = 0, weight = 0;
  for (const Point& point : points) {
    mean = kSmoothing * mean + (1 - kSmoothing) * point.loss;
    weight = kSmoothing * weight + (1 - kSmoothing);
    result.push_back({point.step, mean / weight});  // divided, or the start would lean towards zero
  }
  return result;
}

// A round number of the form 1, 2 or 5 times a power of ten that cuts the span into about five parts.
double tick_distance(double span) {
  const double rough = span / 5, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough) return factor * power;
  }
  return 10 * power;
}

std::string line(const std::vector<Point>& points, const Scale& x, const Scale& y, const std::string& style) {
  std::ostringstream out;
  out << "<polyline fill=\"none\" " << style << " points=\"";
  for (const Point& point : points)
    out << format_fixed(x.at(point.step), 1) << "," << format_fixed(y.at(point.loss), 1) << " ";
  out << "\"/>\n";
  return out.str();
}

std::string text(double x, double y, const std::string& anchor, const std::string& content) {
  return "<text x=\"" + format_fixed(x, 1) + "\" y=\"" + format_fixed(y, 1) + "\" text-anchor=\"" + anchor + "\">" +
         content + "</text>\n";
}

std::string axes(const Scale& x, const Scale& y) {
  std::ostringstream out;
  const double dy = tick_distance(y.high - y.low), dx = tick_distance(x.high - x.low);
  for (double value = std::ceil(y.low / dy) * dy; value <= y.high; value += dy) {
    out << "<line x1=\"" << kLeft << "\" x2=\"" << kWidth - kRight << "\" y1=\"" << format_fixed(y.at(value), 1)
        << "\" y2=\"" << format_fixed(y.at(value), 1) << "\" stroke=\"#ddd\"/>\n";
    out << text(kLeft - 8, y.at(value) + 4, "end", format_number(std::round(value * 1e6) / 1e6));
  }
  for (double value = std::ceil(x.low / dx) * dx; value <= x.high; value += dx) {
    out << text(x.at(value), kHeight - kBottom + 18, "middle", format_number(std::round(value * 1e6) / 1e6));
  }
  out << text((kLeft + kWidth - kRight) / 2, kHeight - 10, "middle", "step");
  return out.str();
}

std::string escaped(const std::string& raw) {
  std::string result;
  for (const char c : raw) {
    if (c == '<') result += "&lt;";
    else if (c == '&') result += "&amp;";
    else result += c;
  }
  return result;
}

}  // namespace

std::string loss_curve_svg(const std::vector<nlohmann::json>& events, const std::string& title) {
  const std::vector<Point> train = losses_of(events, "step"), held_out = losses_of(events, "eval");
  std::ostringstream out;
  out << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" << kWidth << "\" height=\"" << kHeight
      << "\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  out << text(kLeft, 22, "start", escaped(title));
  if (train.size() < 2) {
    out << text(kWidth / 2, kHeight / 2, "middle", "fewer than two losses so far") << "</svg>\n";
    return out.str();
  }
  std::vector<Point> all = train;
  all.insert(all.end(), held_out.begin(), held_out.end());
  const auto by_loss = [](const Point& a, const Point& b) { return a.loss < b.loss; };
  const double lowest = std::min_element(all.begin(), all.end(), by_loss)->loss,
               highest = std::max_element(all.begin(), all.end(), by_loss)->loss;
  const double margin = std::max(0.05 * (highest - lowest), 1e-6);
  const Scale x{train.front().step, std::max(train.back().step, train.front().step + 1), kLeft, kWidth - kRight};
  const Scale y{lowest - margin, highest + margin, kHeight - kBottom, kTop};
  out << axes(x, y) << line(train, x, y, "stroke=\"#9ecae1\" stroke-width=\"1\"")
      << line(smoothed(train), x, y, "stroke=\"#08519c\" stroke-width=\"2\"");
  if (!held_out.empty()) out << line(held_out, x, y, "stroke=\"#d94801\" stroke-width=\"2\"");
  for (const Point& point : held_out) {
    out << "<circle r=\"3\" fill=\"#d94801\" cx=\"" << format_fixed(x.at(point.step), 1) << "\" cy=\""
        << format_fixed(y.at(point.loss), 1) << "\"/>\n";
  }
  out << "<g fill=\"#08519c\">" << text(kWidth - kRight, 22, "end", "training loss") << "</g>\n";
  if (!held_out.empty()) out << "<g fill=\"#d94801\">" << text(kWidth - kRight, 36, "end", "held-out loss") << "</g>\n";
  out << "</svg>\n";
  return out.str();
}

}  // namespace qalora::train
