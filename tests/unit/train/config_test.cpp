#include "qalora/train/config.h"

#include <gtest/gtest.h>

#include "qalora/train/loss_curve.h"

#include <nlohmann/json.hpp>

namespace qalora::train {
namespace {

TrainConfig good() {
  TrainConfig c;
  c.model = "m";
  c.data = "d";
  return c;
}

TEST(TrainConfig, DefaultsAreFineOnceModelAndDataAreNamed) { EXPECT_TRUE(validate(good()).empty()); }

TEST(TrainConfig, EveryProblemIsNamedAtOnce) {
  TrainConfig c;
  c.schedule = "linaer";
  c.rank = 0;
  c.batch_size = 6;
  c.micro_batch_size = 4;
  c.learning_rate = -1;
  c.targets = {"q_proj", "qproj"};
  c.eval_interval = 5;
  std::string all;
  for (const std::string& problem : validate(c)) all += problem + "\n";
  for (const char* word : {"model is missing", "data is missing", "linaer", "did you mean 'linear'", "rank is 0",
                           "micro_batch_size 4", "learning_rate is -1", "qproj", "eval_data"}) {
    EXPECT_NE(all.find(word), std::string::npos) << word << " in\n" << all;
  }
}

TEST(LossCurve, DrawsWhatTheEventsSay) {
  std::vector<nlohmann::json> events;
  EXPECT_NE(loss_curve_svg(events, "t").find("fewer than two"), std::string::npos);
  for (int step = 1; step <= 20; ++step) events.push_back({{"event", "step"}, {"step", step}, {"loss", 5.0 / step}});
  const std::string without = loss_curve_svg(events, "a<b");
  events.push_back({{"event", "eval"}, {"step", 20}, {"loss", 0.5}});
  events.push_back({{"event", "eval"}, {"step", 20}, {"loss", "not finite"}});
  const std::string with = loss_curve_svg(events, "a<b");
  EXPECT_EQ(without.find("held-out"), std::string::npos);
  EXPECT_NE(with.find("held-out"), std::string::npos);
  EXPECT_NE(with.find("a&lt;b"), std::string::npos);
}

}  // namespace
}  // namespace qalora::train
