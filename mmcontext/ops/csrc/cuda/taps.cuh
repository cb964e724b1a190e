// Taps along a row: which source pixel meets which element of w for which target column. A thread
// has a quad, 4 neighbouring target columns. Everything here is known at compile time.
#pragma once

#include "primitives.cuh"

namespace mmcontext {

constexpr bool kBack = TASK == 1;                        // gradient of x
constexpr int kPad = DILATION * (KERNEL - 1) / 2;        // the padding, where kBack
constexpr int kWide = kBack ? 4 / STRIDE : 4;            // elements of w per quad and tap
constexpr int kQuad = kBack ? 4 / STRIDE : 4 * STRIDE;   // source pixels from quad to quad

// First target column of tap `kw`; the others follow in steps of kColumnStep.
DEVICE constexpr int tap_column(int kw) {
  return kBack ? ((kw * DILATION - kPad) % STRIDE + STRIDE) % STRIDE : 0;
}
constexpr int kColumnStep = kBack ? STRIDE : 1;

// Where the tap's elements of w begin, relative to the quad's first: whole quads and remainder.
DEVICE constexpr int tap_shift(int kw) {
  return kBack ? (tap_column(kw) + kPad - kw * DILATION) / STRIDE : 0;
}
DEVICE constexpr int shift_quads(int kw) {
  return tap_shift(kw) >= 0 ? tap_shift(kw) / kWide : -((kWide - 1 - tap_shift(kw)) / kWide);
}
DEVICE constexpr int shift_rest(int kw) { return tap_shift(kw) - shift_quads(kw) * kWide; }

// Source pixel of element m, relative to the quad's first one, which in turn lies kFirstPixel from
// the start of the quad.
constexpr int kFirstPixel = kBack ? tap_shift(KERNEL - 1) : 0;
DEVICE constexpr int tap_pixel(int kw, int m) {
  return kBack ? tap_shift(kw) - kFirstPixel + m : m * STRIDE + kw * DILATION;
}
constexpr int kPixels = (kBack ? tap_pixel(0, kWide - 1) : tap_pixel(KERNEL - 1, 3)) + 1;

// Element m that meets source pixel `at` in tap `kw`, or -1.
DEVICE constexpr int tap_element(int kw, int at) {
  const int rest = at - tap_pixel(kw, 0), step = kBack ? 1 : STRIDE;
  return rest >= 0 && rest % step == 0 && rest / step < kWide ? rest / step : -1;
}

// Rows of taps that a target row meets: every kRowStep-th.
constexpr int kRowStep = kBack && DILATION % STRIDE ? STRIDE : 1;
constexpr int kSteps = (KERNEL + kRowStep - 1) / kRowStep;

// The first of them; KERNEL if there is none.
DEVICE int first_tap(int row) {
  if (!kBack || STRIDE == 1) return 0;
  const int odd = (row + kPad) % STRIDE;
  return DILATION % STRIDE ? odd : odd ? KERNEL : 0;
}

// Source row of the gradient of x (kBack) that target row `row` meets at tap `kh`.
DEVICE int row_before(int row, int kh) {
  constexpr int kFar = KERNEL * DILATION;                // keeps the dividend positive
  return (row + kPad - kh * DILATION + kFar * STRIDE) / STRIDE - kFar;
}

}  // namespace mmcontext
