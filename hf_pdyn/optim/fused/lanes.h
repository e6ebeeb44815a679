// As many floats as a vector register has lanes, for what no compiler makes of a plain loop: powers by tables in
// registers, and moments narrowed to fewer bits. Loops over single floats do the rest, and everything where there is
// neither AVX-512 nor AVX2. What both need is written once, for a T that is `float` or `Lanes`.
#pragma once

#include <type_traits>

#include "powers.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#define HF_PDYN_LANES
#include <immintrin.h>
#endif

namespace {

// Integers as many and as wide as the floats of T.
template <class T>
struct IntegersOf {
  using Int = int32_t;
  using Uint = uint32_t;
};
template <class T>
using Int = typename IntegersOf<T>::Int;
template <class T>
using Uint = typename IntegersOf<T>::Uint;

template <class T>
inline T load(const float* x) {
  return *x;
}
inline void store(float* x, float value) { *x = value; }

template <class T>
inline Int<T> load_code(const uint16_t* x) {
  return *x;
}
template <class T>
inline Int<T> load_code(const int8_t* x) {
  return *x;
}
inline void store_code(uint16_t* x, int32_t code) { *x = uint16_t(code); }
inline void store_code(int8_t* x, int32_t code) { *x = int8_t(code); }

// The upper 16 bits of integers, of which the lower ones are 0 when they are loaded.
template <class T>
inline Int<T> load_upper(const uint16_t* x) {
  return int32_t(uint32_t(*x) << 16);
}
inline void store_upper(uint16_t* x, int32_t bits) { *x = uint16_t(uint32_t(bits) >> 16); }

// 0, 1, ... of the lanes.
template <class T>
inline Uint<T> count() {
  return 0;
}

inline float root(float x) { return std::sqrt(x); }

// x^(-1/4) of a normal and finite x. With vectors it is the root of an estimate of x^(-1/2), to 14 bits or 12 that may
// depend on the CPU, and a step of Newton's method: quicker than two roots and a division.
inline float reciprocal_fourth_root(float x) { return 1.0f / root(root(x)); }

// a b + c in one rounding. Left to the compiler, loops that should agree bit for bit would not.
inline float mul_add(float a, float b, float c) { return std::fma(a, b, c); }

// V of x alone.
template <class V, class X>
inline V spread(X x) {
  return x - V{};
}

inline int32_t at_most(int32_t x, int32_t limit) { return x < limit ? x : limit; }
inline uint32_t at_most(uint32_t x, uint32_t limit) { return x < limit ? x : limit; }
inline int32_t size_of(int32_t x) { return x < 0 ? -x : x; }

// x, or -x where `sign` is negative.
inline int32_t negated_with(int32_t x, int32_t sign) { return sign < 0 ? -x : x; }

// x >= 0 with the uppermost bit of `sign`.
inline int32_t with_sign_of(int32_t x, int32_t sign) { return x | (sign & int32_t(0x80000000u)); }

#ifdef HF_PDYN_LANES

#ifdef __AVX512F__
#define HF_PDYN_VECTOR __attribute__((vector_size(64)))
#else
#define HF_PDYN_VECTOR __attribute__((vector_size(32)))
#endif
using Lanes = float HF_PDYN_VECTOR;
using Ints = int32_t HF_PDYN_VECTOR;
using Uints = uint32_t HF_PDYN_VECTOR;
constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);

template <>
struct IntegersOf<Lanes> {
  using Int = Ints;
  using Uint = Uints;
};

// x, of which the compiler no longer knows what it is; with AVX2, as it was. GCC 12 takes known integers to be cheap:
// where registers are short it moves them from a scalar one in every round of a loop, which costs more than a load.
template <class X>
inline X unknown(X x) {
#ifdef __AVX512F__
  asm("" : "+m"(x));
#endif
  return x;
}

#ifdef __AVX512F__

template <>
inline Lanes load<Lanes>(const float* x) {
  return _mm512_loadu_ps(x);
}
inline void store(float* x, Lanes values) { _mm512_storeu_ps(x, values); }

template <>
inline Ints load_code<Lanes>(const uint16_t* x) {
  return Ints(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
}
template <>
inline Ints load_code<Lanes>(const int8_t* x) {
  return Ints(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline void store_code(uint16_t* x, Ints code) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(__m512i(code)));
}
inline void store_code(int8_t* x, Ints code) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(__m512i(code)));
}

// A permutation of halves instead of shifts before and after it.
template <>
inline Ints load_upper<Lanes>(const uint16_t* x) {
  const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  constexpr uint32_t kUpper = 0xaaaaaaaau;
  const Ints from = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} << 16;
  return Ints(_mm512_maskz_permutexvar_epi16(kUpper, __m512i(from), halves));
}
inline void store_upper(uint16_t* x, Ints bits) {
  alignas(64) static constexpr uint16_t kFrom[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i upper = _mm512_permutexvar_epi16(_mm512_load_si512(kFrom), __m512i(bits));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_castsi512_si256(upper));
}

template <>
inline Uints count<Lanes>() {
  return Uints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

inline Lanes root(Lanes x) { return _mm512_sqrt_ps(x); }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes estimated_reciprocal_root(Lanes x) { return _mm512_rsqrt14_ps(x); }
inline Ints at_most(Ints x, Ints limit) { return Ints(_mm512_min_epi32(__m512i(x), __m512i(limit))); }
inline Uints at_most(Uints x, Uints limit) { return Uints(_mm512_min_epu32(__m512i(x), __m512i(limit))); }
inline Ints size_of(Ints x) { return Ints(_mm512_abs_epi32(__m512i(x))); }
inline Ints negated_with(Ints x, Ints sign) {
  return Ints(_mm512_mask_sub_epi32(__m512i(x), _mm512_movepi32_mask(__m512i(sign)), __m512i(Ints{}), __m512i(x)));
}
inline Ints with_sign_of(Ints x, Ints sign) {
  constexpr int kXOrSignAndBit = 0xf8;  // what the instruction makes of three bits
  const __m512i bit = _mm512_set1_epi32(int32_t(0x80000000u));
  return Ints(_mm512_ternarylogic_epi32(__m512i(x), __m512i(sign), bit, kXOrSignAndBit));
}
inline float total(Lanes x) { return _mm512_reduce_add_ps(x); }

#else

template <>
inline Lanes load<Lanes>(const float* x) {
  return _mm256_loadu_ps(x);
}
inline void store(float* x, Lanes values) { _mm256_storeu_ps(x, values); }

template <>
inline Ints load_code<Lanes>(const uint16_t* x) {
  return Ints(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
template <>
inline Ints load_code<Lanes>(const int8_t* x) {
  return Ints(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
// These instructions would cut codes to their range, in which all codes are.
inline void store_code(uint16_t* x, Ints code) {
  const __m128i low = _mm256_castsi256_si128(__m256i(code)), high = _mm256_extracti128_si256(__m256i(code), 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm_packus_epi32(low, high));
}
inline void store_code(int8_t* x, Ints code) {
  const __m128i low = _mm256_castsi256_si128(__m256i(code)), high = _mm256_extracti128_si256(__m256i(code), 1);
  const __m128i halves = _mm_packs_epi32(low, high);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packs_epi16(halves, halves));
}

template <>
inline Ints load_upper<Lanes>(const uint16_t* x) {
  return load_code<Lanes>(x) << 16;
}
inline void store_upper(uint16_t* x, Ints bits) { store_code(x, Ints(Uints(bits) >> 16)); }

template <>
inline Uints count<Lanes>() {
  return Uints{0, 1, 2, 3, 4, 5, 6, 7};
}

inline Lanes root(Lanes x) { return _mm256_sqrt_ps(x); }
inline Lanes estimated_reciprocal_root(Lanes x) { return _mm256_rsqrt_ps(x); }
inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline Ints at_most(Ints x, Ints limit) { return Ints(_mm256_min_epi32(__m256i(x), __m256i(limit))); }
inline Uints at_most(Uints x, Uints limit) { return Uints(_mm256_min_epu32(__m256i(x), __m256i(limit))); }
inline Ints size_of(Ints x) { return Ints(_mm256_abs_epi32(__m256i(x))); }
// The instruction makes 0 of x where the sign is 0; `sign | 1` never is, and keeps the sign.
inline Ints negated_with(Ints x, Ints sign) { return Ints(_mm256_sign_epi32(__m256i(x), __m256i(sign | 1))); }
inline Ints with_sign_of(Ints x, Ints sign) { return x | (sign & int32_t(0x80000000u)); }
inline float total(Lanes x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

#endif

inline Lanes mul_add(float a, Lanes b, Lanes c) { return mul_add(spread<Lanes>(a), b, c); }
inline Lanes reciprocal_fourth_root(Lanes x) {
  const Lanes y = estimated_reciprocal_root(x);
  return root((0.5f * y) * mul_add(-(x * y), y, spread<Lanes>(3.0f)));
}

inline double binomial(double n, int k) { return k == 0 ? 1.0 : binomial(n - 1, k - 1) * n / k; }

// x^q for many x and one q other than 0: normal x > 0 and normal powers. x is 2^(e - 127) m with m in [1, 2);
// 2^(q (e - 127)) is a product of numbers from tables, m^q a quotient of polynomials. Relative error 5e-7 for |q| <= 1.
// Infinity and NaN count too.
class PowerTables {
 public:
  PowerTables() = default;

  explicit PowerTables(float q) {
    // Pade's approximation of x^q at x = 1, within 1e-7 for x = m / sqrt(2): P(x) over the P of -q. Coefficients are
    // positive, so that no digits are lost, and P(1) is 1, so that nothing overflows.
    const auto coefficient = [](double of, int k) {
      return binomial(kDegree + of, k) * binomial(kDegree - of, kDegree - k) / binomial(2 * kDegree, kDegree);
    };
    for (int k = 0; k <= kDegree; ++k) {
      above_[k] = spread<Lanes>(float(coefficient(q, k) * std::pow(kMiddle, q - k)));
      below_[k] = spread<Lanes>(float(coefficient(-q, k) * std::pow(kMiddle, -k)));
    }
    for (int i = 0; i < kLanes; ++i) fill(double(q), i);
    at_infinity_ = spread<Lanes>(q < 0 ? 0.0f : kInfinity);
  }

  // finite: x is known to be finite.
  template <bool finite>
  inline Lanes power(Lanes x) const {
    const Uints bits = bits_as<Uints>(x);
#ifdef __AVX512F__
    const auto of_sixteen = [](Uints four_bits, const float* table) {
      return Lanes(_mm512_permutexvar_ps(__m512i(four_bits), _mm512_load_ps(table)));
    };
    const Lanes factor = of_sixteen(bits >> 23, low_) * of_sixteen(bits >> 27, high_);
#else
    const auto of_four = [&](int pair) {  // by two bits; an instruction that looks up by three takes thrice as long
      return Lanes(_mm256_permutevar_ps(_mm256_load_ps(pairs_[pair]), __m256i(bits >> (23 + 2 * pair))));
    };
    const Lanes factor = (of_four(0) * of_four(1)) * (of_four(2) * of_four(3));
#endif
    const Lanes m = bits_as<Lanes>((bits & 0x7fffffu) | 0x3f800000u);
    const Lanes z = factor * polynomial(above_, m) / polynomial(below_, m);
    if constexpr (finite) return z;
    return x < kInfinity ? z : (at_infinity_ < x ? at_infinity_ : x);
  }

 private:
  static constexpr int kDegree = 3;
  static constexpr double kMiddle = 1.4142135623730951;

  static inline Lanes polynomial(const Lanes* coefficients, Lanes m) {
    Lanes sum = coefficients[kDegree];
    for (int k = kDegree - 1; k >= 0; --k) sum = mul_add(sum, m, coefficients[k]);
    return sum;
  }

#ifdef __AVX512F__
  alignas(64) float low_[16], high_[16];  // of the lower four bits of e, and the upper ones

  void fill(double q, int i) {
    low_[i] = float(std::exp2(q * i));
    high_[i] = float(std::exp2(q * (i * 16 - 127)));
  }
#else
  alignas(64) float pairs_[4][kLanes];  // of two bits of e each, once for each half of a register

  void fill(double q, int i) {
    for (int pair = 0; pair < 4; ++pair) {
      const int e = (i & 3) << (2 * pair);
      pairs_[pair][i] = float(std::exp2(q * (pair == 3 ? e - 127 : e)));
    }
  }
#endif
  Lanes above_[kDegree + 1], below_[kDegree + 1], at_infinity_;
};

#else

struct PowerTables {
  PowerTables() = default;
  explicit PowerTables(float) {}
};

#endif

}  // namespace
