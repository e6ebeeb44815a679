// Blocks of bf16 numbers as floats, and back.
#pragma once

#include "powers.h"

namespace {

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// A block as float32: itself, or a copy in `scratch`.
const float* as_floats(const void* values, Type type, int64_t start, int64_t n, float* scratch) {
  if (type == kFloat32) return static_cast<const float*>(values) + start;
  const uint16_t* halves = static_cast<const uint16_t*>(values) + start;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) scratch[i] = bits_as<float>(uint32_t(halves[i]) << 16);
  return scratch;
}

// To the nearest bf16, ties to even; NaN stays NaN.
void store_bfloat16(const float* values, int64_t n, uint16_t* halves) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_as<uint32_t>(values[i]);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    halves[i] = uint16_t(values[i] != values[i] ? 0x7fc0 : rounded);
  }
}

// weight_correction.py: bf16 numbers and what float32 has beside them.
void join_bfloat16(const uint16_t* halves, const int16_t* corrections, int64_t n, float* values) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const int32_t correction = (halves[i] & 0x7fff) == 0 ? 0 : corrections[i];
    values[i] = bits_as<float>((uint32_t(halves[i]) << 16) + uint32_t(correction));
  }
}

void split_bfloat16(const float* values, int64_t n, uint16_t* halves, int16_t* corrections) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_as<uint32_t>(values[i]);
    const uint32_t rounded = (bits + 0x8000u) >> 16;
    const bool is_nan = values[i] != values[i];
    halves[i] = uint16_t(is_nan ? 0x7fc0u : rounded);
    corrections[i] = int16_t(is_nan ? 0u : bits - (rounded << 16));
  }
}

}  // namespace
