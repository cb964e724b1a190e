// Passes over maps on a GPU whose channels are scaled image by image.
#pragma once

#include <ATen/ATen.h>

namespace mmcontext {

using at::Tensor;

// What scales a map: factors, a sigmoid of logits, or a softmax over two logits a channel.
enum Gate { kFactor, kSigmoid, kSoftmax };

// One or two maps of the same shape and dtype; the second may be undefined.
struct Maps { Tensor x, other; };

// `scale` times the sum of both maps over the pixels, [B, C, 1, 1] in `type`.
Tensor means_of(const Maps& maps, at::ScalarType type, double scale);

// The scaled map, or the mixture of both.
Tensor result_of(const Maps& maps, const Tensor& factor, Gate gate);

// Gradient of the factors or logits.
Tensor gradient_of_factor(const Maps& maps, const Tensor& grad, const Tensor& factor, Gate gate);

// Gradients of x and, with `other`, of the other map; grad_means may be undefined.
Maps gradients_of_maps(const Tensor& grad, bool other, const Tensor& factor, Gate gate,
                       const Tensor& grad_means, double scale, bool want_x, bool want_other);

}  // namespace mmcontext
