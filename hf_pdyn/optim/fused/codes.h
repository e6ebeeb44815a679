// Moments in fewer bits than float32, as state_format.py has them. Codes lie in integers as wide as floats here.
#pragma once

#include "lanes.h"

namespace {

enum Format : int32_t { kFp32 = 0, k16Bit = 1, k8And16Bit = 2 };

template <Format format>
struct Stored {
  using M = uint16_t;
  using V = uint16_t;
};
template <>
struct Stored<k8And16Bit> {
  using M = int8_t;
  using V = uint16_t;
};
template <>
struct Stored<kFp32> {
  using M = float;
  using V = float;
};

constexpr int32_t kVShift = 14, kVZero = (127 - 88) << 9, kVLargest = 65535;
constexpr int32_t kMShift = 19, kMLargest = 127;
constexpr float kVSmallest = 0x1p-88f;

// The code of an m that is no number.
template <Format format>
constexpr typename Stored<format>::M kMNaN = {};
template <>
constexpr uint16_t kMNaN<k16Bit> = 0x7fc0;
template <>
constexpr int8_t kMNaN<k8And16Bit> = -128;

// Random bits are a hash of a key; v takes the upper 14, m the lower 16 or 19, of which one is v's too. Callers pass
// key * kKeyFactor, so that a loop over keys in a row need only add.
constexpr uint32_t kKeyFactor = 0x7feb352du;

template <class U>
inline U random_of(U product) {
  return (product ^ (product >> 15)) * 0x846ca68bu;
}

// A better hash, of what keys are made of.
inline uint32_t mixed(uint32_t x) {
  const uint32_t random = random_of(x * kKeyFactor);
  return random ^ (random >> 16);
}

// m is counted in these while it is used: 2^(k - 4), from which codes of an 8-bit m count, then has an exponent that is
// bits of the code of v, without a sum.
template <Format format>
constexpr float kMUnit = format == k8And16Bit ? 0x1p15f : 1.0f;

// Moments of T from and to their codes. In 8 bits the code of NaN decodes to a number here, and an m that is no number
// may be stored as one: `NotNumbers` puts both right.
template <class T>
class Codes {
  using I = Int<T>;
  using U = Uint<T>;

 public:
  // v as the bits of the float v + 2^-88, of which the code is the upper ones.
  I load_v(const uint16_t* x) const { return (load_code<T>(x) << kVShift) + v_zero_; }
  void store_v(uint16_t* x, I v_bits) const { store_code(x, (v_bits - v_zero_) >> kVShift); }

  static T v_of(I v_bits) { return bits_as<T>(v_bits) - kVSmallest; }

  // Such bits of the v that is stored for this v + 2^-88: of the largest for what is beyond it, infinite or NaN.
  I rounded_v(T shifted_v, U random) const {
    const U bits = at_most(bits_as<U>(shifted_v), v_largest_);  // NaN is above, of either sign
    return bits_as<I>((bits + (random >> (32 - kVShift))) & v_kept_);
  }

  template <Format format>
  T load_m(const typename Stored<format>::M* x, I v_bits) const {
    if constexpr (format == k16Bit) {
      return bits_as<T>(load_upper<T>(x));
    } else {
      const I code = load_code<T>(x), unit = with_sign_of(unit_of_m(v_bits), code);
      return bits_as<T>((size_of(code) << kMShift) + unit) - bits_as<T>(unit);
    }
  }

  // Returns what is stored for m.
  template <Format format>
  T round_and_store_m(typename Stored<format>::M* x, T m, I v_bits, U random) const {
    if constexpr (format == k16Bit) {
      const U sum = bits_as<U>(m) + (random & 0xffffu);
      store_upper(x, bits_as<I>(sum));
      return bits_as<T>(sum & 0xffff0000u);
    } else {
      const I unit = with_sign_of(unit_of_m(v_bits), bits_as<I>(m));
      const T shifted = m + bits_as<T>(unit);
      const I sum = at_most(bits_as<I>(shifted) - unit, m_largest_) + bits_as<I>(random & m_dropped_);
      store_code(x, negated_with(sum >> kMShift, unit));
      return bits_as<T>((sum & m_kept_) + unit) - bits_as<T>(unit);
    }
  }

 private:
  // Bits of 2^(k - 4), in kMUnit. The bits of |m| + 2^(k - 4), of which the code of an 8-bit m beside such a v is the
  // upper ones, count up from there. The exponent of 2^(k - 4), k - 4 - 15 + 127, is 64 more than half of the one that
  // the code of v counts from 0.
  I unit_of_m(I v_bits) const { return (((v_bits - v_zero_) >> 1) & exponent_bits_) | unit_of_zero_; }

  I v_zero_ = spread<I>(kVZero << kVShift), m_largest_ = spread<I>(kMLargest << kMShift);
  I m_kept_ = spread<I>(~((1 << kMShift) - 1)), exponent_bits_ = spread<I>(0x7f800000);
  I unit_of_zero_ = spread<I>(64 << 23);
  U v_largest_ = spread<U>(uint32_t(kVLargest + kVZero) << kVShift), v_kept_ = spread<U>(~0u << kVShift);
  U m_dropped_ = spread<U>((1u << kMShift) - 1);
};

// Up to `most` elements, of which a loop takes every code and every gradient for a number: asking each takes 5 % of its
// time with AVX-512, 10 to 25 % with AVX2.
template <Format format, int64_t most>
class NotNumbers {
  using M = typename Stored<format>::M;

 public:
  // exp_avg: before the loop.
  NotNumbers(const M* exp_avg, int64_t n) : n_(n) {
    if constexpr (format == k8And16Bit) {  // other codes of NaN decode to NaN
      M smallest = 0;
#pragma omp simd reduction(min : smallest)
      for (int64_t i = 0; i < n; ++i) smallest = exp_avg[i] < smallest ? exp_avg[i] : smallest;
      any_before_ = smallest == kMNaN<format>;
      if (any_before_) std::memcpy(before_, exp_avg, n);
    }
  }

  // Calls visit(i) for those that should have become no numbers, after their codes are written as such.
  // grad: null if m has taken in none; squares: the sum of all of its squares, times a positive number.
  template <class Visit>
  void restore(M* exp_avg, const float* grad, float squares, const Visit& visit) const {
    if constexpr (format != kFp32) {
      const bool look_at_grad = grad && !(std::fabs(squares) < kInfinity);
      if (!any_before_ && !look_at_grad) return;
      for (int64_t i = 0; i < n_; ++i) {
        if ((any_before_ && before_[i] == kMNaN<format>) || (look_at_grad && makes_none(grad[i]))) {
          exp_avg[i] = kMNaN<format>;
          visit(i);
        }
      }
    }
  }

 private:
  // Whether m is no number in its codes once it has taken in g. 16 bits hold infinity; random bits that are added to a
  // NaN may make a number of it.
  static bool makes_none(float g) { return format == k8And16Bit ? !(std::fabs(g) < kInfinity) : g != g; }

  const int64_t n_;
  bool any_before_ = false;
  M before_[format == k8And16Bit ? most : 1];
};

}  // namespace
