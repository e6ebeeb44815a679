// The p-update for CPUs in one pass over memory: theta, grad, exp_avg and exp_avg_sq are read once, all but grad are
// written once, and the sums that statistics need are taken on the way.
//
// Built by cpu.py, which calls `hf_pdyn_step` and mirrors the three structs. No header of torch is included, so it
// compiles in two or three seconds. Work is cut into chunks whose sums are stored apart: results do not depend on the
// number of threads. A chunk goes through the stages below block by block, so that what they hand on stays in L1. The
// stages are plain loops that the compiler vectorises; with AVX-512 the last and longest is written with vectors. NaN
// and infinity behave as in torch: no -ffast-math, only -fno-math-errno and -fno-trapping-math, without which neither
// sqrt nor a select is vectorised.

#include <type_traits>

#include "powers.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBlock = 512;         // floats: four blocks of scratch and four streams are 16 KiB
constexpr int64_t kChunk = 32 * kBlock;
constexpr int64_t kAhead = 128;         // floats between what is loaded and what is prefetched

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// Of the moments: state_format.py.
enum Format : int32_t { kFp32 = 0, k16Bit = 1, k8And16Bit = 2 };

constexpr int32_t kVShift = 14, kVZero = (127 - 88) << 9, kVLargest = 65535;
constexpr int32_t kMShift = 19, kMZero = (127 - 4) << 4, kMLargest = 127, kMNaN = -128;
constexpr float kVSmallest = 0x1p-88f, kMSmallest = 0x1p-4f;

// What is asked of a call; any combination.
enum Task : int32_t {
  kMoments = 1,    // m and v take in the gradient
  kApply = 2,      // theta moves
  kGradient = 4,   // sum of g^2
  kDirection = 8,  // sum of d^2, where lr * d is the update, and of the same at p = 1/2
  kMeasure = 16,   // sums of v_hat, sqrt(g^2 + eps), N_p and eps / (v_hat + eps)
  kParameter = 32, // sums of (lr d)^2, and of theta^2 once it has moved
};

// Columns of `sums`: STEP_SUMS of step_work.py.
enum Sum {
  kGradSq, kUpdateSq, kParamSq, kVHatSum, kOneNorm, kNP, kNumel, kRuledByEps, kMoved, kDirectionSq, kAdamSq, kSums
};

// One piece of a tensor: addresses of its elements, all of them `numel` in a row.
struct Run {
  void* theta;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;  // null without amsgrad
  void* correction;      // of a bf16 theta: weight_correction.py; or null
  int64_t numel;
  int64_t first_chunk;  // of the call
  int64_t settings;     // row
  int64_t number;       // of the parameter, and the index there of the first element: they decide how moments are rounded
  int64_t start;
};

// Of the runs of one group at one step count; SETTINGS of cpu.py. `one_minus_beta` are given: in float32, 1 - 0.999f is
// 2e-5 off.
struct Settings {
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float scale;        // d = scale m (v + v_eps)^-p: v_hat would overflow earlier than v does
  float adam_scale;   // the same at p = 1/2
  float v_eps;        // of v, as eps is of v_hat
  float v_hat_scale;  // v_hat is v times this
  float power_scale;  // N_p is the sum of (g^2 + eps)^(1-p) times this, or of its log at p = 1
  float p;
  float eps;
  float l2;            // coupled: weight_decay
  float sign;          // -1 to maximize
  float t;
  float rate;          // lr c_t
  float decay;         // decoupled: lr weight_decay
  float grad_rescale;  // undoes clipping in the sums of kMeasure
};

struct Call {
  const Run* runs;
  const Settings* settings;
  int64_t n_runs, n_chunks;
  int32_t tasks;
  Type theta_type, grad_type;
  Format format;
  int32_t threads;
};

template <class T>
inline T load(const float* x) {
  return *x;
}

inline void store(float* x, float value) { *x = value; }

inline float root(float x) { return std::sqrt(x); }

// a b + c in one rounding. Left to the compiler, loops that should agree bit for bit would not.
inline float mul_add(float a, float b, float c) { return std::fma(a, b, c); }

#ifdef __AVX512F__

// Tables fit into registers here, so that polynomials can be short; no compiler makes such look-ups of a plain loop.
using Lanes = float __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

struct Tables {
  alignas(64) float reciprocal[16];         // of the middle of each sixteenth of [1, 2)
  alignas(64) float log2_of_middle[16];     // of one over that
  alignas(64) int32_t exp2_less_index[32];  // bits of 2^(i/32), less the i << 18 that `power_of_normal` adds

  Tables() {
    for (int32_t i = 0; i < 16; ++i) {
      reciprocal[i] = float(1 / (1 + (i + 0.5) / 16));
      log2_of_middle[i] = float(-std::log2(double(reciprocal[i])));
    }
    for (int32_t i = 0; i < 32; ++i) exp2_less_index[i] = bits_as<int32_t>(float(std::exp2(i / 32.0))) - (i << 18);
  }
};
const Tables kTables;

inline Lanes spread(float x) { return _mm512_set1_ps(x); }

// As the other one, largest relative error 4e-7 for |q| <= 1.
inline Lanes power_of_normal(Lanes x, float q) {
  const __m512 reciprocals = _mm512_load_ps(kTables.reciprocal);
  const __m512 log2_of_middles = _mm512_load_ps(kTables.log2_of_middle);
  const __m512i low = _mm512_load_si512(kTables.exp2_less_index);
  const __m512i high = _mm512_load_si512(kTables.exp2_less_index + 16);

  // log2 x = exponent + fraction: of the middle of the sixteenth, and log2(1 + t) for |t| <= 1/32, by Taylor to 3e-7.
  const __m512i sixteenth = _mm512_srli_epi32(_mm512_castps_si512(x), 19);  // in the low four bits
  const Lanes exponent = _mm512_getexp_ps(x);
  const Lanes mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
  const Lanes t = _mm512_fmsub_ps(mantissa, _mm512_permutexvar_ps(sixteenth, reciprocals), spread(1.0f));
  const Lanes fraction =
      ((0.48089835f * t - 0.72134752f) * t + 1.442695f) * t + Lanes(_mm512_permutexvar_ps(sixteenth, log2_of_middles));

  // q log2 x = n + r, n in 32nds, |r| <= 1/64.
  constexpr float kRoundsTo32nds = kRoundsToInteger / 32;
  const Lanes factor = spread(q);
  const Lanes shifted = _mm512_fmadd_ps(factor, exponent + fraction, spread(kRoundsTo32nds));
  const Lanes n = shifted - kRoundsTo32nds;
  const Lanes r = _mm512_fmadd_ps(factor, fraction, _mm512_fmsub_ps(factor, exponent, n));

  // 2^n: shifting left leaves of `shifted` n's integer in the place of the exponent, and its 32nds below, which the
  // table has taken off.
  const __m512i bits = _mm512_castps_si512(shifted);
  const Lanes exp2_n = _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_permutex2var_epi32(low, bits, high), _mm512_slli_epi32(bits, 18)));
  const Lanes z = exp2_n + exp2_n * r * (0.24022651f * r + 0.6931472f);  // 2^r by Taylor to 2e-7
  const __mmask16 finite = _mm512_cmp_ps_mask(x, spread(kInfinity), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(spread(q < 0 ? 0.0f : kInfinity), finite, z);
}

template <>
inline Lanes load<Lanes>(const float* x) {
  return _mm512_loadu_ps(x);
}

inline void store(float* x, Lanes values) { _mm512_storeu_ps(x, values); }

inline Lanes root(Lanes x) { return _mm512_sqrt_ps(x); }

inline Lanes mul_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes mul_add(float a, Lanes b, Lanes c) { return _mm512_fmadd_ps(spread(a), b, c); }

inline float total(Lanes x) { return _mm512_reduce_add_ps(x); }

#endif

// How x^-p is computed.
enum class Gain { kOne, kReciprocalRoot, kReciprocalFourthRoot, kReciprocal, kPowerOfNormal, kPowerOfAny };

// For all but kOne.
template <Gain gain, class T>
inline T power(T x, float q) {
  if constexpr (gain == Gain::kReciprocalRoot) return 1.0f / root(x);
  if constexpr (gain == Gain::kReciprocalFourthRoot) return 1.0f / root(root(x));
  if constexpr (gain == Gain::kReciprocal) return 1.0f / x;
  if constexpr (gain == Gain::kPowerOfNormal) return power_of_normal(x, q);
  if constexpr (gain == Gain::kPowerOfAny) return power_of_any(x, q);
}

// For x >= smallest. Exponents of normal numbers lie within 127, so at |q| < 0.98 those of their powers do too.
Gain gain_of(float q, float smallest) {
  if (q == 0.0f) return Gain::kOne;
  if (q == -0.5f) return Gain::kReciprocalRoot;
  if (q == -0.25f) return Gain::kReciprocalFourthRoot;
  if (q == -1.0f) return Gain::kReciprocal;
  return std::fabs(q) < 0.98f && smallest >= kSmallestNormal ? Gain::kPowerOfNormal : Gain::kPowerOfAny;
}

double sum(const float* x, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

double sum_of_squares(const float* x, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i] * x[i];
  return total;
}

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

// Sums of sqrt(g^2 + eps), and N_p, of the gradient before clipping.
void add_norms(const float* grad, int64_t n, const Settings& s, double* sums) {
  alignas(64) float perturbed[kBlock];
  float one_norm = 0;
#pragma omp simd reduction(+ : one_norm)
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.grad_rescale;
    perturbed[i] = g * g + s.eps;
    one_norm += std::sqrt(perturbed[i]);
  }
  sums[kOneNorm] += one_norm;
  if (s.p == 0.5f) {
    sums[kNP] += s.power_scale * one_norm;
    return;
  }
  if (s.p == 1.0f) {
    for (int64_t i = 0; i < n; ++i) perturbed[i] = std::log(perturbed[i]);
  } else if (gain_of(1.0f - s.p, s.eps) == Gain::kPowerOfNormal && one_norm == one_norm) {
    int64_t i = 0;
#ifdef __AVX512F__
    for (; i + kLanes <= n; i += kLanes) store(perturbed + i, power_of_normal(load<Lanes>(perturbed + i), 1.0f - s.p));
#endif
#pragma omp simd
    for (int64_t j = i; j < n; ++j) perturbed[j] = power_of_normal(perturbed[j], 1.0f - s.p);
  } else if (s.p != 0.0f) {  // with NaN among them, perhaps
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) perturbed[i] = power_of_any(perturbed[i], 1.0f - s.p);
  }
  sums[kNP] += s.power_scale * sum(perturbed, n);
}

// Sums of v_hat, and over v that are not 0, of eps / (v_hat + eps) and of ones.
void add_second_moment(const float* v, int64_t n, const Settings& s, double* sums) {
  float total = 0, ruled_by_eps = 0, moved = 0;
#pragma omp simd reduction(+ : total, ruled_by_eps, moved)
  for (int64_t i = 0; i < n; ++i) {
    total += v[i];
    ruled_by_eps += v[i] > 0 ? s.v_eps / (v[i] + s.v_eps) : 0.0f;
    moved += v[i] > 0 ? 1.0f : 0.0f;
  }
  sums[kVHatSum] += s.v_hat_scale * total;
  sums[kRuledByEps] += ruled_by_eps;
  sums[kMoved] += moved;
}

// m <- beta1 m + (1 - beta1) g, as torch's lerp has it for 1 - beta1 < 1/2.
template <class T>
inline T lerp(T m, T g, float w) {
  return mul_add(w, g - m, m);
}

// v <- beta2 v + (1 - beta2) g^2. Not g^2 first, which overflows earlier than v does.
template <class T>
inline T second_moment(T v, T g, const Settings& s) {
  return mul_add(s.beta2, v, s.one_minus_beta2 * g * g);
}

// Integers of as many lanes as T has. The functions below are written once for both.
template <class T>
struct Lane {
  using Int = int32_t;
  using Uint = uint32_t;
  static uint32_t count() { return 0; }
};

inline void load_code(const uint16_t* x, int32_t& code) { code = *x; }
inline void load_code(const int8_t* x, int32_t& code) { code = *x; }
inline void store_code(uint16_t* x, int32_t code) { *x = uint16_t(code); }
inline void store_code(int8_t* x, int32_t code) { *x = int8_t(code); }
inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
inline uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline float smaller(float a, float b) { return a < b ? a : b; }

#ifdef __AVX512F__
using Ints = int32_t __attribute__((vector_size(64)));
using Uints = uint32_t __attribute__((vector_size(64)));

template <>
struct Lane<Lanes> {
  using Int = Ints;
  using Uint = Uints;
  static Uints count() { return Uints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
};

inline void load_code(const uint16_t* x, Ints& code) {
  code = Ints(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
}
inline void load_code(const int8_t* x, Ints& code) {
  code = Ints(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
inline void store_code(uint16_t* x, Ints code) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(__m512i(code)));
}
inline void store_code(int8_t* x, Ints code) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(__m512i(code)));
}
inline Ints smaller(Ints a, int32_t b) { return Ints(_mm512_min_epi32(__m512i(a), _mm512_set1_epi32(b))); }
inline Uints smaller(Uints a, uint32_t b) { return Uints(_mm512_min_epu32(__m512i(a), _mm512_set1_epi32(int32_t(b)))); }
inline Lanes smaller(Lanes a, float b) { return _mm512_min_ps(a, spread(b)); }
#endif

template <class Uint>
inline Uint mixed(Uint x) {
  x = x * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

template <class T>
inline T decoded_v(typename Lane<T>::Int code) {
  return bits_as<T>((code + kVZero) << kVShift) - kVSmallest;
}

template <class T>
inline typename Lane<T>::Int encoded_v(T v, typename Lane<T>::Uint random) {
  using Uint = typename Lane<T>::Uint;
  const Uint bits = bits_as<Uint>(v + kVSmallest) + (random & 0x3fff);  // unsigned: NaN is large
  return bits_as<typename Lane<T>::Int>(smaller(bits >> kVShift, uint32_t(kVLargest + kVZero)) - uint32_t(kVZero));
}

// The high half of the random bits, or 0 beside infinity and NaN.
inline uint32_t random_of_finite(float m, uint32_t random) {
  return (bits_as<uint32_t>(m) & 0x7fffffffu) < 0x7f800000u ? random >> 16 : 0;
}
#ifdef __AVX512DQ__
inline Uints random_of_finite(Lanes m, Uints random) {
  constexpr int kNaNOrInfinity = 0x99;
  return Uints(_mm512_maskz_srli_epi32(__mmask16(~_mm512_fpclass_ps_mask(m, kNaNOrInfinity)), __m512i(random), 16));
}
#endif

// Bits of 2^k for the code of v, and of 2^-k.
template <class Int>
inline Int two_to_k(Int v_code) {
  return ((v_code + (166 << 9)) >> 10) << 23;
}
template <class Int>
inline Int two_to_minus_k(Int v_code) {
  return (254 << 23) - two_to_k(v_code);
}

template <Format format, class T>
inline T decoded_m(typename Lane<T>::Int code, typename Lane<T>::Int v_code) {
  using Int = typename Lane<T>::Int;
  if constexpr (format == k16Bit) {
    return bits_as<T>(code << 16);
  } else {
    const Int sign = code >> 31;
    const T size = bits_as<T>((((code ^ sign) - sign) + kMZero) << kMShift) - kMSmallest;
    const Int m = bits_as<Int>(size * bits_as<T>(two_to_k(v_code))) | (sign << 31);
    return bits_as<T>(code == kMNaN ? (m | 0x7fc00000) : m);
  }
}

// The code of m, which becomes what that stands for.
template <Format format, class T>
inline typename Lane<T>::Int encode_m(T& m, typename Lane<T>::Int v_code, typename Lane<T>::Uint random) {
  using Int = typename Lane<T>::Int;
  using Uint = typename Lane<T>::Uint;
  const Int bits = bits_as<Int>(m), size_bits = bits & 0x7fffffff;
  if constexpr (format == k16Bit) {
    const Uint code = (bits_as<Uint>(bits) + random_of_finite(m, random)) >> 16;
    m = bits_as<T>(code << 16);
    return bits_as<Int>(code);
  } else {
    // The largest has no digits to round.
    const float largest = bits_as<float>((kMLargest + kMZero) << kMShift);
    const T size = smaller(bits_as<T>(size_bits) * bits_as<T>(two_to_minus_k(v_code)) + kMSmallest, largest);
    const Int rounded = (bits_as<Int>(size) + bits_as<Int>((random >> 14) << 1)) >> kMShift;
    const Int code = rounded - kMZero, sign = bits >> 31;
    const Int nan = (bits ^ bits) + kMNaN;
    const T found = (bits_as<T>(rounded << kMShift) - kMSmallest) * bits_as<T>(two_to_k(v_code));
    const T zero_or_nan = m - m;
    m = bits_as<T>(bits_as<Int>(found) | (sign << 31)) + zero_or_nan;
    return size_bits < 0x7f800000 ? (code ^ sign) - sign : nan;
  }
}

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

// Moments of a block as floats.
template <Format format>
void decode(const typename Stored<format>::M* exp_avg, const uint16_t* exp_avg_sq, int64_t n, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const int32_t v_code = exp_avg_sq[i];
    m[i] = decoded_m<format, float>(exp_avg[i], v_code);
    v[i] = decoded_v<float>(v_code);
  }
}

// The moments of what T holds take in g, and are as they are stored then; returns the code of v.
template <Format format, class T>
inline typename Lane<T>::Int take_in(typename Stored<format>::M* exp_avg, uint16_t* exp_avg_sq, T g, bool usual,
                                     uint32_t key, uint32_t index, const Settings& s, T& m, T& v) {
  typename Lane<T>::Int m_code, v_code;
  load_code(exp_avg_sq, v_code);
  load_code(exp_avg, m_code);
  m = decoded_m<format, T>(m_code, v_code);
  m = usual ? lerp(m, g, s.one_minus_beta1) : g - (g - m) * (1.0f - s.one_minus_beta1);
  v = second_moment(decoded_v<T>(v_code), g, s);
  const auto random = mixed<typename Lane<T>::Uint>((index + key) + Lane<T>::count());
  v_code = encoded_v<T>(v, random);
  store_code(exp_avg_sq, v_code);
  store_code(exp_avg, encode_m<format, T>(m, v_code, random));
  v = decoded_v<T>(v_code);
  return v_code;
}

// What random bits of a block depend on besides an element's index.
inline uint32_t key_of(const Run& run, uint32_t high, const Settings& s) {
  return mixed(mixed(uint32_t(run.number)) + uint32_t(int32_t(s.t))) ^ mixed(high);
}

// The same for what `run` holds from `start` on: with `grad`, moments take it in; m and v are as they are stored then.
// v is the running maximum where there is one.
template <Format format>
void moments_of_block(const Run& run, const float* grad, int64_t start, int64_t n, const Settings& s, float* m, float* v) {
  auto* exp_avg = static_cast<typename Stored<format>::M*>(run.exp_avg) + start;
  auto* exp_avg_sq = static_cast<uint16_t*>(run.exp_avg_sq) + start;
  if (grad) {
    const bool usual = s.one_minus_beta1 < 0.5f;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t index = uint64_t(run.start) + uint64_t(start) + uint64_t(i);
      const uint32_t key = key_of(run, uint32_t(index >> 32), s);
      take_in<format, float>(exp_avg + i, exp_avg_sq + i, grad[i], usual, key, uint32_t(index), s, m[i], v[i]);
    }
  } else {
    decode<format>(exp_avg, exp_avg_sq, n, m, v);
  }
  if (run.max_exp_avg_sq) {
    auto* maximum = static_cast<uint16_t*>(run.max_exp_avg_sq) + start;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      if (grad) maximum[i] = exp_avg_sq[i] > maximum[i] ? exp_avg_sq[i] : maximum[i];
      v[i] = decoded_v<float>(maximum[i]);
    }
  }
}

struct Squares {
  double grad, direction, adam;
};

// The larger, or v if that is NaN, as torch's maximum has it.
template <class T>
inline T larger(T v, T than) {
  return (v > than) | (v != v) ? v : than;
}

// The update of what T holds. takes_in: the moments take in `grad`. amsgrad: then `maximum` takes in v
// and stands under the power. moves: theta moves, else adam_sq is summed.
template <class T, bool takes_in, bool moves, bool amsgrad, Gain gain, Format format>
inline void update(float* theta, const float* grad, typename Stored<format>::M* exp_avg,
                   typename Stored<format>::V* second, float* maximum, const Settings& s, uint32_t key, uint32_t index,
                   T& grad_sq, T& direction_sq, T& adam_sq) {
  T m, v;
  if constexpr (format != kFp32) {
    const T g = load<T>(grad);
    take_in<format, T>(exp_avg, second, g, true, key, index, s, m, v);
    grad_sq += g * g;
  } else {
    m = load<T>(exp_avg);
    v = load<T>(second);
  }
  if constexpr (takes_in && format == kFp32) {
    const T g = load<T>(grad);
    m = lerp(m, g, s.one_minus_beta1);
    v = second_moment(v, g, s);
    store(exp_avg, m);
    store(second, v);
    grad_sq += g * g;
    if constexpr (amsgrad) {
      v = larger(v, load<T>(maximum));
      store(maximum, v);
    }
  }
  const T x = v + s.v_eps;
  T d = s.scale * m;
  if constexpr (gain != Gain::kOne) d *= power<gain>(x, -s.p);
  direction_sq += d * d;
  if constexpr (moves) {
    // Update and decay together, so that bf16 parameters are rounded once.
    const T before = load<T>(theta);
    T step = s.rate * d;
    if (s.decay != 0) step = mul_add(s.decay, before, step);
    store(theta, before - step);
  }
  if constexpr (!moves) {
    const T adam = s.adam_scale * m;
    adam_sq += adam * (adam / x);  // adam^2 may overflow
  }
}

// The update of a block in one loop. key, index: see `take_in`; nothing to float32 moments.
template <bool takes_in, bool moves, bool amsgrad, Format format, Gain gain>
Squares loop(float* __restrict theta, const float* __restrict grad, typename Stored<format>::M* __restrict exp_avg,
             typename Stored<format>::V* __restrict second, float* __restrict maximum, int64_t n, const Settings& s,
             uint32_t key, uint32_t index) {
  static_assert(format == kFp32 || (takes_in && !amsgrad));
  Squares squares = {0, 0, 0};
  int64_t start = 0;
#ifdef __AVX512F__
  if constexpr (gain != Gain::kPowerOfAny) {
    Lanes grad_sq = {}, direction_sq = {}, adam_sq = {};
    for (; start + kLanes <= n; start += kLanes) {
      if constexpr (format == kFp32) {  // there memory is the limit; elsewhere it costs more than it saves
        __builtin_prefetch(theta + start + kAhead, 1);
        __builtin_prefetch(grad + start + kAhead);
        __builtin_prefetch(exp_avg + start + kAhead, 1);
        __builtin_prefetch(second + start + kAhead, 1);
      }
      update<Lanes, takes_in, moves, amsgrad, gain, format>(theta + start, grad + start, exp_avg + start,
                                                            second + start, maximum + start, s, key,
                                                            index + uint32_t(start), grad_sq, direction_sq, adam_sq);
    }
    squares = {total(grad_sq), total(direction_sq), total(adam_sq)};
  }
#endif
  float grad_sq = 0, direction_sq = 0, adam_sq = 0;
#pragma omp simd reduction(+ : grad_sq, direction_sq, adam_sq)
  for (int64_t i = start; i < n; ++i) {
    update<float, takes_in, moves, amsgrad, gain, format>(theta + i, grad + i, exp_avg + i, second + i, maximum + i, s,
                                                          key, index + uint32_t(i), grad_sq, direction_sq, adam_sq);
  }
  return {squares.grad + grad_sq, squares.direction + direction_sq, squares.adam + adam_sq};
}

template <bool takes_in, bool moves, bool amsgrad, Format format = kFp32>
Squares loop(float* theta, const float* grad, typename Stored<format>::M* exp_avg, typename Stored<format>::V* second,
             float* maximum, int64_t n, const Settings& s, uint32_t key = 0, uint32_t index = 0) {
  const auto with = [&](auto of) {
    return loop<takes_in, moves, amsgrad, format, decltype(of)::value>(theta, grad, exp_avg, second, maximum, n, s, key,
                                                                       index);
  };
  switch (gain_of(-s.p, s.v_eps)) {
    case Gain::kOne:
      return with(std::integral_constant<Gain, Gain::kOne>());
    case Gain::kReciprocalRoot:
      return with(std::integral_constant<Gain, Gain::kReciprocalRoot>());
    case Gain::kReciprocalFourthRoot:
      return with(std::integral_constant<Gain, Gain::kReciprocalFourthRoot>());
    case Gain::kReciprocal:
      return with(std::integral_constant<Gain, Gain::kReciprocal>());
    case Gain::kPowerOfNormal:
      return with(std::integral_constant<Gain, Gain::kPowerOfNormal>());
    case Gain::kPowerOfAny:
      break;
  }
  return with(std::integral_constant<Gain, Gain::kPowerOfAny>());
}

// The same where moments are stored in fewer bits, for what `run` holds from `start` on, and take in `grad`.
template <bool moves, Format format>
Squares loop_of_codes(float* theta, const float* grad, const Run& run, int64_t start, int64_t n, const Settings& s) {
  auto* exp_avg = static_cast<typename Stored<format>::M*>(run.exp_avg) + start;
  auto* exp_avg_sq = static_cast<uint16_t*>(run.exp_avg_sq) + start;
  const uint64_t index = uint64_t(run.start) + uint64_t(start);
  const uint64_t left = (uint64_t(1) << 32) - (index & 0xffffffffu);
  const int64_t same = left < uint64_t(n) ? int64_t(left) : n;  // elements whose index has the same high word
  const uint32_t high = uint32_t(index >> 32);
  Squares found = loop<true, moves, false, format>(theta, grad, exp_avg, exp_avg_sq, nullptr, same, s,
                                                   key_of(run, high, s), uint32_t(index));
  if (same < n) {
    const Squares rest = loop<true, moves, false, format>(theta + same, grad + same, exp_avg + same, exp_avg_sq + same,
                                                          nullptr, n - same, s, key_of(run, high + 1, s), 0);
    found = {found.grad + rest.grad, found.direction + rest.direction, found.adam + rest.adam};
  }
  return found;
}

void step_block(const Call& call, const Run& run, const Settings& s, int64_t start, int64_t n, double* sums) {
  alignas(64) float theta_scratch[kBlock], grad_scratch[kBlock], taken_in[kBlock], m_scratch[kBlock], v_scratch[kBlock];
  const bool in_floats = call.format == kFp32;
  float* exp_avg = in_floats ? static_cast<float*>(run.exp_avg) + start : m_scratch;
  float* second = in_floats ? static_cast<float*>(run.exp_avg_sq) + start : v_scratch;
  float* maximum = in_floats && run.max_exp_avg_sq ? static_cast<float*>(run.max_exp_avg_sq) + start : nullptr;
  int16_t* correction = run.correction ? static_cast<int16_t*>(run.correction) + start : nullptr;
  float* theta = theta_scratch;
  if (correction) {
    join_bfloat16(static_cast<const uint16_t*>(run.theta) + start, correction, n, theta);
  } else {
    theta = const_cast<float*>(as_floats(run.theta, call.theta_type, start, n, theta_scratch));
  }
  bool takes_in = call.tasks & kMoments;
  const bool moves = call.tasks & kApply;

  const bool in_one_loop = s.one_minus_beta1 < 0.5f;  // else m is not taken in by lerp's common form
  // kMeasure needs v as floats.
  const bool codes_in_loop = !in_floats && takes_in && in_one_loop && !run.max_exp_avg_sq && !(call.tasks & kMeasure);

  const float* grad = nullptr;
  bool loop_sums_gradient = false;
  if (call.tasks & (kMoments | kGradient | kMeasure)) {
    grad = as_floats(run.grad, call.grad_type, start, n, grad_scratch);
    if (call.tasks & kMeasure) add_norms(grad, n, s, sums);
    const bool changed = s.sign < 0 || s.l2 != 0;
    loop_sums_gradient = takes_in && !changed && in_one_loop && (in_floats || codes_in_loop);
    if (call.tasks & kGradient && !loop_sums_gradient) sums[kGradSq] += sum_of_squares(grad, n);
    if (changed) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) taken_in[i] = s.sign * grad[i] + (s.l2 != 0 ? s.l2 * theta[i] : 0.0f);
      grad = taken_in;
    }
  }

  if (!in_floats && !codes_in_loop) {
    const auto moments = call.format == k16Bit ? moments_of_block<k16Bit> : moments_of_block<k8And16Bit>;
    moments(run, takes_in ? grad : nullptr, start, n, s, exp_avg, second);
    takes_in = false;
  }
  if (takes_in && !in_one_loop) {
    const float w = s.one_minus_beta1;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float g = grad[i];
      // torch's lerp has two forms; by the second, m is g at beta1 = 0.
      exp_avg[i] = w < 0.5f ? lerp(exp_avg[i], g, w) : g - (g - exp_avg[i]) * (1.0f - w);
      second[i] = second_moment(second[i], g, s);
      if (maximum) maximum[i] = larger(second[i], maximum[i]);
    }
    takes_in = false;
  }
  const float* v = maximum ? maximum : second;
  if (maximum && !takes_in) {
    second = maximum;
    maximum = nullptr;
  }

  const auto of_codes = call.format == k16Bit ? (moves ? loop_of_codes<true, k16Bit> : loop_of_codes<false, k16Bit>)
                                              : (moves ? loop_of_codes<true, k8And16Bit> : loop_of_codes<false, k8And16Bit>);
  const auto run_loop = !takes_in ? (moves ? loop<false, true, false> : loop<false, false, false>)
                        : maximum ? (moves ? loop<true, true, true> : loop<true, false, true>)
                                  : (moves ? loop<true, true, false> : loop<true, false, false>);
  const Squares squares = codes_in_loop ? of_codes(theta, grad, run, start, n, s)
                                        : run_loop(theta, grad, exp_avg, second, maximum, n, s, 0, 0);
  if (call.tasks & kGradient && loop_sums_gradient) sums[kGradSq] += squares.grad;
  if (call.tasks & kDirection) {
    sums[kDirectionSq] += squares.direction;
    sums[kAdamSq] += squares.adam;
  }
  if (call.tasks & kMeasure) {
    add_second_moment(v, n, s, sums);
    sums[kNumel] += n;
  }
  if (!moves) return;
  if (call.theta_type == kBFloat16) {
    uint16_t* halves = static_cast<uint16_t*>(run.theta) + start;
    if (correction) {
      split_bfloat16(theta, n, halves, correction);
    } else {
      store_bfloat16(theta, n, halves);
    }
    if (call.tasks & kParameter) as_floats(run.theta, kBFloat16, start, n, theta);
  }
  if (call.tasks & kParameter) {
    sums[kUpdateSq] += squares.direction * s.rate * s.rate;
    sums[kParamSq] += sum_of_squares(theta, n);
  }
}

}  // namespace

// Elements of a chunk, so that the caller can count chunks.
extern "C" int64_t hf_pdyn_chunk() { return kChunk; }

// sums: (kSums, n_runs), overwritten; chunk_sums: scratch of shape (n_chunks, kSums).
extern "C" void hf_pdyn_step(const Call* call, double* chunk_sums, double* sums) {
#pragma omp parallel num_threads(call->threads) if (call->n_chunks > 1)
  {
    int64_t run_index = 0;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < call->n_chunks; ++chunk) {
      while (run_index + 1 < call->n_runs && call->runs[run_index + 1].first_chunk <= chunk) ++run_index;
      const Run& run = call->runs[run_index];
      double* of_chunk = chunk_sums + chunk * kSums;
      for (int64_t i = 0; i < kSums; ++i) of_chunk[i] = 0;
      const int64_t start = (chunk - run.first_chunk) * kChunk;
      const int64_t stop = run.numel - start < kChunk ? run.numel : start + kChunk;
      for (int64_t i = start; i < stop; i += kBlock) {
        step_block(*call, run, call->settings[run.settings], i, stop - i < kBlock ? stop - i : kBlock, of_chunk);
      }
    }
  }
  for (int64_t r = 0; r < call->n_runs; ++r) {
    const int64_t end = r + 1 < call->n_runs ? call->runs[r + 1].first_chunk : call->n_chunks;
    double of_run[kSums] = {};
    for (int64_t chunk = call->runs[r].first_chunk; chunk < end; ++chunk) {
      for (int64_t i = 0; i < kSums; ++i) of_run[i] += chunk_sums[chunk * kSums + i];
    }
    for (int64_t i = 0; i < kSums; ++i) sums[i * call->n_runs + r] = of_run[i];
  }
}
