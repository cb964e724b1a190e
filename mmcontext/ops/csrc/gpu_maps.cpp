#include "gpu_maps.h"

#include <algorithm>
#include <cstdlib>

#include "gpu.h"
#include "layout.h"
#include "local_aggregation.h"

namespace mmcontext {

bool wants_gradient(std::initializer_list<const Tensor*> operands) {
  return at::GradMode::is_enabled() &&
         std::any_of(operands.begin(), operands.end(),
                     [](const Tensor* t) { return t->defined() && t->requires_grad(); });
}

Tensor dense_gradient(const Tensor& grad, const Tensor& like) {
  return grad.to(like.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor empty_pixels(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

Tensor empty_floats(at::IntArrayRef sizes, const Tensor& like) {
  return at::empty(sizes, at::TensorOptions().dtype(at::kFloat).device(like.device()));
}

std::string defines(std::initializer_list<std::pair<const char*, int64_t>> options) {
  std::string all;
  all.reserve(128);
  for (const auto& option : options) {
    all.append(all.empty() ? "-D" : " -D").append(option.first).append("=")
        .append(std::to_string(option.second));
  }
  return all;
}

std::string chosen_method(const char* variable, c10::string_view method) {
  const char* const value = method.empty() ? std::getenv(variable) : nullptr;
  const std::string chosen = !method.empty() ? std::string(method)
                             : value == nullptr || *value == 0 ? "auto" : value;
  TORCH_CHECK_VALUE(chosen == "auto" || chosen == "cuda" || chosen == "torch" || chosen == "null",
                    variable, " must be one of auto, cuda, torch, null, got '", chosen, "'");
  return chosen;
}

std::string tensor_refusal(const Tensor& x, bool on_host) {
  if (on_host ? !x.is_cpu() : !x.is_cuda()) {
    return "the CUDA kernels run on a GPU, x is on " + x.device().str();
  }
  if (x.dim() != 4 || !has_storage(x.scalar_type()) || x.scalar_type() == at::kDouble) {
    return std::string("they support maps [B, C, H, W] in float32, bfloat16 or float16, x is ") +
           c10::toString(x.scalar_type());
  }
  return on_host ? "" : gpu_refusal(x.get_device());
}

std::string map_refusal(const Tensor& x, bool on_host) {
  const std::string reason = tensor_refusal(x, on_host);
  if (!reason.empty()) return reason;
  if (x.numel() == 0 || !lies_by_pixel(x)) {
    return "they support channels-last maps only";
  }
  if (x.size(1) * x.element_size() % 16) {
    return std::to_string(x.size(1)) + " channels are not a multiple of 16 bytes";
  }
  return "";
}

}  // namespace mmcontext
