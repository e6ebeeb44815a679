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
constexpr int32_t kMShift = 19, kMZero = (127 - 4) << 4, kMLargest = 127, kMNaN = -128;
constexpr float kVSmallest = 0x1p-88f, kMSmallest = 0x1p-4f;
constexpr int32_t kSign = int32_t(0x80000000u), kInfinityBits = 0x7f800000;

// Random bits are a hash of a key. Callers pass key * kKeyFactor, so that a loop over keys in a row need only add.
constexpr uint32_t kKeyFactor = 0x7feb352du;

template <class U>
struct Random {
  U all, high;  // 32 bits, and the upper 16 of them
};

template <class U>
inline Random<U> random_of(U product) {
  const U x = (product ^ (product >> 15)) * 0x846ca68bu;
  const U high = x >> 16;
  return {x ^ high, high};
}

inline uint32_t mixed(uint32_t x) { return random_of(x * kKeyFactor).all; }

// v as the bits of the float v + 2^-88, of which the code is the upper ones.
template <class T>
inline Int<T> load_v(const uint16_t* x) {
  return (load_code<T>(x) + kVZero) << kVShift;
}

template <class T>
inline void store_v(uint16_t* x, Int<T> v_bits) {
  store_code(x, (v_bits >> kVShift) - kVZero);
}

template <class T>
inline T v_of(Int<T> v_bits) {
  return bits_as<T>(v_bits) - kVSmallest;
}

// Of the v that is stored for this one. What is beyond the largest, infinite or NaN is stored as that.
template <class T>
inline Int<T> rounded_v(T v, Uint<T> random) {
  constexpr int32_t kDropped = (1 << kVShift) - 1;
  const float largest = bits_as<float>((kVLargest + kVZero) << kVShift);  // nothing is left to round
  return (bits_as<Int<T>>(at_most(v + kVSmallest, largest)) + (bits_as<Int<T>>(random) & kDropped)) & ~kDropped;
}

// Bits of 2^k beside such a v, and of 2^-k.
template <class T>
inline Int<T> two_to_k(Int<T> v_bits) {
  return bits_as<Int<T>>((bits_as<Uint<T>>(v_bits) + (127u << 23)) >> 1) & kInfinityBits;
}
template <class T>
inline Int<T> two_to_minus_k(Int<T> v_bits) {
  return (254 << 23) - two_to_k<T>(v_bits);
}

template <Format format, class T>
inline T load_m(const typename Stored<format>::M* x, Int<T> v_bits) {
  const Int<T> code = load_code<T>(x);
  if constexpr (format == k16Bit) {
    return bits_as<T>(code << 16);
  } else {
    const T size = bits_as<T>((size_of(code) + kMZero) << kMShift) - kMSmallest;
    const Int<T> m = bits_as<Int<T>>(size * bits_as<T>(two_to_k<T>(v_bits))) | (code & kSign);
    return bits_as<T>(m | all_bits_if(code == kMNaN));  // all bits: NaN
  }
}

// m becomes what is stored.
template <Format format, class T>
inline void round_and_store_m(typename Stored<format>::M* x, T& m, Int<T> v_bits, Random<Uint<T>> random) {
  const Int<T> bits = bits_as<Int<T>>(m);
  if constexpr (format == k16Bit) {
    // Adding to a NaN could carry into its sign and make a number of it; the lower half of infinity is 0.
    const Uint<T> sum = bits_as<Uint<T>>(bits) + (m == m ? random.high : random.high * 0);
    m = bits_as<T>(sum & 0xffff0000u);
    store_code(x, bits_as<Int<T>>(sum >> 16));
  } else {
    constexpr int32_t kDropped = (1 << kMShift) - 1;
    const float largest = bits_as<float>((kMLargest + kMZero) << kMShift);  // nothing is left to round
    const Int<T> size_bits = bits & ~kSign;
    const T size = at_most(bits_as<T>(size_bits) * bits_as<T>(two_to_minus_k<T>(v_bits)) + kMSmallest, largest);
    const Int<T> sum = bits_as<Int<T>>(size) + bits_as<Int<T>>((random.all >> 14) << 1);
    const T rounded = (bits_as<T>(sum & ~kDropped) - kMSmallest) * bits_as<T>(two_to_k<T>(v_bits));
    const Int<T> code = with_sign((sum >> kMShift) - kMZero, bits);
    const Int<T> not_finite = all_bits_if(size_bits >= kInfinityBits);
    m = bits_as<T>(bits_as<Int<T>>(rounded) | (bits & kSign) | not_finite);
    store_code(x, (code & ~not_finite) | (kMNaN & not_finite));
  }
}

}  // namespace
