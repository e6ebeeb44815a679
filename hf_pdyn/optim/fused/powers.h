// x^q of single floats, in loops that a compiler vectorises, and what they are made of.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float power_of_two(int32_t n) { return bits_as<float>(uint32_t(n + 127) << 23); }

// x = 2^exponent * (1 + t) with 1 + t in [sqrt(1/2), sqrt(2)), for a normal x > 0; returns log2(1 + t) to 7e-7, of
// which a power takes q ln 2.
inline float log2_of_fraction(float x, int32_t& exponent) {
  const int32_t bits = bits_as<int32_t>(x);
  exponent = (bits - 0x3f3504f3) >> 23;
  const float t = bits_as<float>(uint32_t(bits) - (uint32_t(exponent) << 23)) - 1.0f;
  float q = 0.17616668343544006f;
  q = q * t - 0.27097731828689575f;
  q = q * t + 0.29509982466697693f;
  q = q * t - 0.35918480157852173f;
  q = q * t + 0.4806486964225769f;
  q = q * t - 0.7213677167892456f;
  q = q * t + 1.4426963329315186f;
  return q * t;
}

constexpr float kRoundsToInteger = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits

// 2^r for |r| <= 1/2, to 1e-7.
inline float exp2_of_fraction(float r) {
  float q = 0.0013410004321485758f;
  q = q * r + 0.009676036424934864f;
  q = q * r + 0.05550297349691391f;
  q = q * r + 0.2402210682630539f;
  q = q * r + 0.6931472420692444f;
  return q * r + 1.0f;
}

// x^q, largest relative error 7e-7 for |q| <= 1 (4e-7 for |q| <= 0.4), for a normal x > 0 and a normal result, infinity
// or NaN.
inline float power_of_normal(float x, float q) {
  int32_t e;
  const float log2_fraction = log2_of_fraction(x, e);
  const float exponent = float(e);
  const float shifted = std::fma(q, exponent + log2_fraction, kRoundsToInteger);
  const float n = shifted - kRoundsToInteger;
  // q * exponent - n in one rounding: the product alone would lose what the exponent has in digits.
  const float r = std::fma(q, log2_fraction, std::fma(q, exponent, -n));
  // Shifting left leaves of `shifted` the integer alone, in the place of the exponent.
  const float z = bits_as<float>(bits_as<uint32_t>(exp2_of_fraction(r)) + (bits_as<uint32_t>(shifted) << 23));
  const float at_infinity = q < 0 ? 0.0f : kInfinity;
  return x < kInfinity ? z : (at_infinity < x ? at_infinity : x);
}

// The same for any x >= 0, NaN, and results that overflow, underflow or are subnormal.
inline float power_of_any(float x, float q) {
  const bool subnormal = x < kSmallestNormal;
  int32_t e;
  const float log2_fraction = log2_of_fraction(subnormal ? x * 0x1p24f : x, e);
  const float exponent = float(e - (subnormal ? 24 : 0));
  float y = q * (exponent + log2_fraction);
  y = y < -300.f ? -300.f : (y > 300.f ? 300.f : y);
  const float n = (y + kRoundsToInteger) - kRoundsToInteger;
  float r = std::fma(q, log2_fraction, std::fma(q, exponent, -n));
  r = r < -1.f ? -1.f : (r > 1.f ? 1.f : r);  // only where y was out of range
  int32_t k = int32_t(n);
  k = k < -252 ? -252 : (k > 254 ? 254 : k);
  const int32_t half = k >> 1;
  float z = exp2_of_fraction(r) * power_of_two(half) * power_of_two(k - half);
  z = x == 0.0f ? (q < 0 ? kInfinity : (q > 0 ? 0.0f : 1.0f)) : z;
  z = x == kInfinity ? (q < 0 ? 0.0f : (q > 0 ? kInfinity : 1.0f)) : z;
  return x != x ? x : z;
}

}  // namespace
