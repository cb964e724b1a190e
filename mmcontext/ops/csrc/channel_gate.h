// Passes over maps on a GPU whose channels are scaled image by image.
#pragma once

#include <ATen/ATen.h>

namespace mmcontext {

using at::Tensor;

// What scales a map: factors, a sigmoid of logits, or a softmax over two logits a channel.
enum Gate { kFactor, kSigmoid, kSoftmax };

// Maps of one kind; the second may be undefined.
struct Maps { Tensor x, other; };

// Means over the pixels of the sum of both maps, [B, C, 1, 1] in `type`, times `scale` a pixel.
Tensor means_of(const Maps& maps, at::ScalarType type, double scale);

// The scaled map, or both mixed.
Tensor result_of(const Maps& maps, const Tensor& factor, Gate gate);

// Gradient of the factors or logits.
Tensor gradient_of_factor(const Maps& maps, const Tensor& grad, const Tensor& factor, Gate gate);

// Gradients of x and, with `other`, of the other map; grad_means may be undefined.
Maps gradients_of_maps(const Tensor& grad, bool other, const Tensor& factor, Gate gate,
                       const Tensor& grad_means, double scale, bool want_x, bool want_other);

}  // namespace mmcontext
