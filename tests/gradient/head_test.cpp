// The loss builds no gradient that nobody asked for.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <functional>

#include "qalora/model/functions.h"

namespace qalora::model {
namespace {

int products = 0;  // additions of a product to the head's gradient since last reset

std::unique_ptr<at::ObserverContext> count_products(const at::RecordFunction& function) {
  if (std::string(function.name()) == "aten::addmm_") ++products;
  return nullptr;
}

int products_in(const std::function<void()>& call) {
  products = 0;
  const at::CallbackHandle handle =
      at::addThreadLocalCallback(at::RecordFunctionCallback(count_products).scopes({at::RecordScope::FUNCTION}));
  call();
  at::removeCallback(handle);
  return products;
}

TEST(LinearCrossEntropy, MakesNoHeadGradientWhileEvaluating) {
  const at::Tensor hidden = at::ones({6, 4}), targets = at::zeros({6}, at::kLong);
  const at::Tensor frozen = at::ones({9, 4}), trained = at::ones({9, 4}).requires_grad_(true);
  const auto loss = [&](const at::Tensor& head) { linear_cross_entropy(hidden, head, targets, /*chunk=*/2); };
  EXPECT_EQ(products_in([&] { loss(trained); }), 3);  // one a chunk
  EXPECT_EQ(products_in([&] { loss(frozen); }), 0);
  const c10::NoGradGuard no_grad;
  EXPECT_EQ(products_in([&] { loss(trained); }), 0);
}

}  // namespace
}  // namespace qalora::model
