// The p-update for CPUs in one pass over memory: theta, grad, exp_avg and exp_avg_sq are read once, all but grad are
// written once, and the sums that statistics need are taken on the way.
//
// Built by cpu.py, which calls `hf_pdyn_step` and mirrors the three structs. No header of torch is included, so it
// compiles in six or seven seconds. Work is cut into chunks whose sums are stored apart: results do not depend on the
// number of threads. Where `needs_no_scratch` says so, one loop does everything to a chunk; else a chunk goes through
// stages block by block, so that what they hand on stays in L1. The stages are plain loops that the compiler
// vectorises, the loop of the update is written with vectors (lanes.h). NaN and infinity behave as in torch: no
// -ffast-math, only -fno-math-errno and -fno-trapping-math, without which neither sqrt nor a select is vectorised.

#include <type_traits>

#include "bfloat16.h"
#include "codes.h"

namespace {

constexpr int64_t kBlock = 512;         // floats: four blocks of scratch and four streams are 16 KiB
constexpr int64_t kChunk = 32 * kBlock;
constexpr int64_t kSummed = 512;        // squares that are added as floats, before they are as doubles

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
  int64_t number;       // of the parameter; with the next one, it decides how moments are rounded
  int64_t start;        // index of the first element there
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

// How x^-p is computed.
enum class Gain {
  kOne,
  kReciprocalRoot,
  kReciprocalFourthRoot,
  kReciprocalFourthRootOfNormal,
  kReciprocal,
  kPowerOfNormal,
  kPowerOfAny
};

// Whether x^q is a normal number for every finite x >= smallest, which are normal too: exponents lie within 127, so at
// |q| < 0.98 those of powers do.
bool stays_normal(float q, float smallest) { return std::fabs(q) < 0.98f && smallest >= kSmallestNormal; }

// For x >= smallest.
Gain gain_of(float q, float smallest) {
  if (q == 0.0f) return Gain::kOne;
  if (q == -0.5f) return Gain::kReciprocalRoot;
  if (q == -0.25f) return Gain::kReciprocalFourthRoot;
  if (q == -1.0f) return Gain::kReciprocal;
  return stays_normal(q, smallest) ? Gain::kPowerOfNormal : Gain::kPowerOfAny;
}

// m x^q. finite: x is known to be finite. tables: of q, if Lanes need them.
template <Gain gain, bool finite, class T>
inline T times_power(T m, T x, [[maybe_unused]] float q, [[maybe_unused]] const PowerTables& tables) {
  if constexpr (gain == Gain::kOne) return m;
  if constexpr (gain == Gain::kReciprocalRoot) return m / root(x);
  if constexpr (gain == Gain::kReciprocalFourthRoot) return m * (1.0f / root(root(x)));
  if constexpr (gain == Gain::kReciprocalFourthRootOfNormal) return m * reciprocal_fourth_root(x);
  if constexpr (gain == Gain::kReciprocal) return m * (1.0f / x);  // infinite where the tensor step is
  if constexpr (gain == Gain::kPowerOfAny) return m * power_of_any(x, q);
  if constexpr (gain == Gain::kPowerOfNormal && std::is_same_v<T, float>) return m * power_of_normal(x, q);
#ifdef HF_PDYN_LANES
  if constexpr (gain == Gain::kPowerOfNormal && !std::is_same_v<T, float>) return m * tables.power<finite>(x);
#endif
}

// What a group's exponents need.
struct Prepared {
  const Settings* settings = nullptr;
  Gain gain = Gain::kOne;         // of (v + v_eps)^-p, the same for every pass
  PowerTables of_v, of_gradient;  // of that, and of (g^2 + eps)^(1-p)

  void take(const Settings& s, const Call& call) {
    if (settings == &s) return;
    settings = &s;
    gain = gain_of(-s.p, s.v_eps);
#ifdef HF_PDYN_LANES
    // Two roots and a division take longer than what else there is, in float32 with AVX-512; v of codes is finite.
    if (gain == Gain::kReciprocalFourthRoot && stays_normal(-s.p, s.v_eps)) {
      if (call.format != kFp32) gain = Gain::kReciprocalFourthRootOfNormal;
      if (call.format == kFp32 && kLanes == 16) gain = Gain::kPowerOfNormal;
    }
#endif
    if (gain == Gain::kPowerOfNormal) of_v = PowerTables(-s.p);
    if (call.tasks & kMeasure && gain_of(1.0f - s.p, s.eps) == Gain::kPowerOfNormal) {
      of_gradient = PowerTables(1.0f - s.p);
    }
  }
};

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

// Sums of sqrt(g^2 + eps), and N_p, of the gradient before clipping.
void add_norms(const float* grad, int64_t n, const Prepared& prepared, double* sums) {
  const Settings& s = *prepared.settings;
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
#ifdef HF_PDYN_LANES
    for (; i + kLanes <= n; i += kLanes) {
      store(perturbed + i, prepared.of_gradient.power<false>(load<Lanes>(perturbed + i)));
    }
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

// m <- beta1 m + (1 - beta1) g for w = 1 - beta1, in the two forms of torch's lerp; by the second, m is g at beta1 = 0.
// Lanes are there for w < 1/2 alone, and loops of lanes are not entered for others.
template <Format format, class T>
inline T lerp(T m, T g, float w) {
  constexpr float unit = kMUnit<format>;
  const T difference = unit == 1.0f ? g - m : mul_add(-unit, m, g);
  if constexpr (std::is_same_v<T, float>) {
    if (w >= 0.5f) return (g - difference * (1.0f - w)) / unit;
  }
  return mul_add(w / unit, difference, m);
}

// The larger, or v if that is NaN, as torch's maximum has it.
template <class T>
inline T larger(T v, T than) {
  return ((v > than) | (v != v)) ? v : than;
}

// m: in units of kMUnit.
template <class T>
struct Moments {
  T m, v;
};

// Sums of (1 - beta2) g^2, which lose digits with |g| below 1e-19, and of squares of the direction and of Adam's, which
// lacks its scale.
template <class T>
struct Squares {
  T weighted, direction, adam;

  void operator+=(const Squares& more) {
    weighted += more.weighted;
    direction += more.direction;
    adam += more.adam;
  }
};

// What is asked of a loop, the same for all its elements.
struct Asked {
  bool takes_in, moves, decays;
  bool sums;  // squares are summed
};

// What one loop goes through. key: of random bits; an element's place is added to it.
template <Format format>
struct Streams {
  float* theta;
  const float* grad;
  typename Stored<format>::M* exp_avg;
  typename Stored<format>::V* second;
  float* maximum;
  uint32_t key;
};

// What `run` holds from `start` on. An element's key is a hash of the upper half of its index, plus the lower one.
template <Format format>
Streams<format> streams_of(const Run& run, int64_t start, float* theta, const float* grad, const Settings& s) {
  const uint64_t index = uint64_t(run.start) + uint64_t(start);
  const uint32_t key = mixed(mixed(uint32_t(run.number)) + uint32_t(int32_t(s.t))) ^ mixed(uint32_t(index >> 32));
  return {theta, grad, static_cast<typename Stored<format>::M*>(run.exp_avg) + start,
          static_cast<typename Stored<format>::V*>(run.exp_avg_sq) + start, nullptr, key + uint32_t(index)};
}

// How many of n elements from `start` on have an index with the same upper half.
int64_t with_one_key(const Run& run, int64_t start, int64_t n) {
  const uint64_t left = (uint64_t(1) << 32) - ((uint64_t(run.start) + uint64_t(start)) & 0xffffffffu);
  return left < uint64_t(n) ? int64_t(left) : n;
}

template <class T, Format format>
inline Moments<T> moments_at(const Streams<format>& at, int64_t i, const Codes<T>& codes) {
  if constexpr (format == kFp32) {
    return {load<T>(at.exp_avg + i), load<T>(at.second + i)};
  } else {
    const Int<T> v_bits = codes.load_v(at.second + i);
    return {codes.template load_m<format>(at.exp_avg + i, v_bits), codes.v_of(v_bits)};
  }
}

// Moments that have taken in the gradient and are not stored yet. shifted_v: of codes v + 2^-88, else v. random: of
// codes.
template <class T>
struct Taken {
  T m, shifted_v;
  Uint<T> random;

  Taken(T m, T shifted_v, Uint<T> random) : m(m), shifted_v(shifted_v), random(random) {}
  // Written out, since GCC 12 would copy three vectors through memory.
  Taken(const Taken& from) : Taken(from.m, from.shifted_v, from.random) {}
  void operator=(const Taken& from) {
    m = from.m;
    shifted_v = from.shifted_v;
    random = from.random;
  }
};

// product: see `random_of`.
template <class T, Format format>
inline Taken<T> take_in(const Streams<format>& at, int64_t i, Uint<T> product, const Settings& s,
                        const Codes<T>& codes, T& sum_of_weighted) {
  // v <- beta2 v + (1 - beta2) g^2, of which g^2 alone overflows earlier.
  const T g = load<T>(at.grad + i), weighted = s.one_minus_beta2 * g;
  sum_of_weighted = mul_add(weighted, g, sum_of_weighted);
  if constexpr (format == kFp32) {
    const T v = mul_add(weighted, g, s.beta2 * load<T>(at.second + i));
    return {lerp<format>(load<T>(at.exp_avg + i), g, s.one_minus_beta1), v, Uint<T>{}};
  } else {
    // beta2 2^-88 + rest is 2^-88 in float32 too, at a beta2 below 1/2 as a tie that goes to even: v = 0 stays.
    const T rest = spread<T>((1.0f - s.beta2) * kVSmallest);
    const Int<T> v_bits = codes.load_v(at.second + i);
    const T shifted_v = mul_add(weighted, g, mul_add(s.beta2, bits_as<T>(v_bits), rest));
    const T m = lerp<format>(codes.template load_m<format>(at.exp_avg + i, v_bits), g, s.one_minus_beta1);
    return {m, shifted_v, random_of(product)};
  }
}

// Returns moments as they are stored. amsgrad: `maximum` takes in v, and is what is returned.
template <class T, bool amsgrad, Format format>
inline Moments<T> store_taken(const Taken<T>& taken, const Streams<format>& at, int64_t i, const Codes<T>& codes) {
  if constexpr (format == kFp32) {
    store(at.exp_avg + i, taken.m);
    store(at.second + i, taken.shifted_v);
    if constexpr (!amsgrad) return {taken.m, taken.shifted_v};
    const T v = larger(taken.shifted_v, load<T>(at.maximum + i));
    store(at.maximum + i, v);
    return {taken.m, v};
  } else {
    const Int<T> v_bits = codes.rounded_v(taken.shifted_v, taken.random);
    codes.store_v(at.second + i, v_bits);
    const T m = codes.template round_and_store_m<format>(at.exp_avg + i, taken.m, v_bits, taken.random);
    return {m, codes.v_of(v_bits)};
  }
}

// For moments_of_streams: those of what T holds from i on.
template <class T, Format format>
inline void moments_as_floats(const Streams<format>& at, int64_t i, const Settings& s, const Codes<T>& codes,
                              T& sum_of_weighted, float* m, float* v) {
  Moments<T> moments;
  if (at.grad) {
    const Uint<T> product = (count<T>() + (at.key + uint32_t(i))) * kKeyFactor;
    moments = store_taken<T, false>(take_in<T>(at, i, product, s, codes, sum_of_weighted), at, i, codes);
  } else {
    moments = moments_at<T>(at, i, codes);
  }
  store(m + i, kMUnit<format> * moments.m);
  store(v + i, moments.v);
}

// Moments as floats; with `grad`, after they have taken it in. In fp32, m and v lie where they are stored.
// maximum: null, or takes in v; of codes, v is the maximum then.
template <Format format>
void moments_of_streams(const Streams<format>& at, int64_t n, const Settings& s, typename Stored<format>::V* maximum,
                        float* m, float* v) {
  const NotNumbers<format, kBlock> not_numbers(at.exp_avg, n);
  const Codes<float> codes;
  float squares = 0;
  int64_t i = 0;
#ifdef HF_PDYN_LANES
  if (format != kFp32 && s.one_minus_beta1 < 0.5f) {
    Lanes sum_of_weighted = {};
    for (; i + kLanes <= n; i += kLanes) moments_as_floats(at, i, s, Codes<Lanes>(), sum_of_weighted, m, v);
    squares = total(sum_of_weighted);
  }
#endif
#pragma omp simd reduction(+ : squares)
  for (int64_t j = i; j < n; ++j) {
    float weighted = 0;
    moments_as_floats(at, j, s, codes, weighted, m, v);
    squares += weighted;
  }
  not_numbers.restore(at.exp_avg, at.grad, squares, [&](int64_t i) { m[i] = kNaN; });
  if (!maximum) return;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (format == kFp32) {
      maximum[i] = larger(v[i], maximum[i]);
    } else {
      if (at.grad) maximum[i] = at.second[i] > maximum[i] ? at.second[i] : maximum[i];
      v[i] = codes.v_of(codes.load_v(maximum + i));
    }
  }
}

// The update by these moments. moves: theta moves, else squares are summed for Adam too.
template <class T, bool moves, Gain gain, Format format>
inline void update_by(const Moments<T>& moments, const Streams<format>& at, int64_t i, const Asked& asked,
                      const Settings& s, const PowerTables& tables, Squares<T>& squares) {
  const T x = moments.v + s.v_eps;
  const T direction = times_power<gain, format != kFp32>(moments.m, x, -s.p, tables);
  const float scale = s.scale * kMUnit<format>;
  if (asked.sums) {
    const T d = scale * direction;  // at the first step and p = 2, squares without the scale overflow
    squares.direction = mul_add(d, d, squares.direction);
  }
  if constexpr (moves) {
    // Update and decay together, so that theta is rounded once.
    const T before = load<T>(at.theta + i);
    const float rate = s.rate * scale;
    store(at.theta + i, asked.decays ? before - mul_add(s.decay, before, rate * direction)
                                     : mul_add(-rate, direction, before));
  } else {
    squares.adam = mul_add(moments.m, moments.m / x, squares.adam);  // m^2 may overflow
  }
}

// After a loop over what `not_numbers` knows, from `start` on, which has found this sum of (1 - beta2) g^2.
template <bool takes_in, bool moves, Format format>
void put_right(const NotNumbers<format, kSummed>& not_numbers, const Streams<format>& at, int64_t start, float weighted,
               Squares<double>& found) {
  not_numbers.restore(at.exp_avg + start, takes_in ? at.grad + start : nullptr, weighted, [&](int64_t i) {
    if (moves) at.theta[start + i] = kNaN;
    found.direction = found.adam = kNaN;
  });
}

#ifdef HF_PDYN_LANES

// Elements between what is loaded and what is prefetched, by what was the quickest.
template <Format format>
constexpr int64_t kAhead = kLanes == 16 && format != k8And16Bit ? 96 : 256;

// Has what a loop needs next brought to the caches; what it writes, as its own.
template <bool takes_in, bool moves, Format format>
inline void prefetch(const Streams<format>& at, int64_t i) {
  // With AVX2, arithmetic limits these codes more than memory does.
  if constexpr (format == k8And16Bit && kLanes < 16) return;
  if constexpr (moves) __builtin_prefetch(at.theta + i, 1);
  if constexpr (takes_in) __builtin_prefetch(at.grad + i);
  __builtin_prefetch(at.exp_avg + i, takes_in);
  __builtin_prefetch(at.second + i, takes_in);
}

// A copy of what lies from i on, which is too little for a register, with other elements behind it.
template <Format format>
class Padded {
 public:
  Padded(const Streams<format>& from, int64_t i, int64_t n, bool takes_in) : from_(from), i_(i), numel_(n - i) {
    for (auto& v : second_) v = 1;
    each([](auto* in_memory, auto* copy, size_t size) { std::memcpy(copy, in_memory, size); });
    if (takes_in) std::memcpy(grad_, from.grad + i, numel_ * sizeof(*grad_));
  }

  Streams<format> streams() { return {theta_, grad_, exp_avg_, second_, maximum_, from_.key + uint32_t(i_)}; }

  void write_back() {
    each([](auto* in_memory, auto* copy, size_t size) { std::memcpy(in_memory, copy, size); });
  }

 private:
  const Streams<format>& from_;
  const int64_t i_, numel_;
  alignas(64) float theta_[kLanes] = {}, grad_[kLanes] = {}, maximum_[kLanes] = {};
  alignas(64) typename Stored<format>::M exp_avg_[kLanes] = {};
  alignas(64) typename Stored<format>::V second_[kLanes];

  template <class Function>
  void each(const Function& function) {
    function(from_.theta + i_, theta_, numel_ * sizeof(*theta_));
    function(from_.exp_avg + i_, exp_avg_, numel_ * sizeof(*exp_avg_));
    function(from_.second + i_, second_, numel_ * sizeof(*second_));
    if (from_.maximum) function(from_.maximum + i_, maximum_, numel_ * sizeof(*maximum_));
  }
};

// The update of n elements; where less than a register is left, as if there were more. counted: how many of them count
// in sums.
template <bool takes_in, bool moves, bool amsgrad, Format format, Gain gain>
Squares<double> loop_of_lanes(const Streams<format>& given_streams, int64_t n, int64_t counted, const Asked& asked,
                              const Settings& given_settings, const PowerTables& given_tables) {
  // Local copies, so that the compiler need not load them again after each store.
  const Streams<format> at = given_streams;
  const Settings s = given_settings;
  const PowerTables tables = given_tables;
  const Codes<Lanes> codes = unknown(Codes<Lanes>());
  Squares<double> found = {0, 0, 0};
  Uints product = (count<Lanes>() + at.key) * kKeyFactor;
  int64_t start = 0;
  for (int64_t stop; start + kLanes <= n; start = stop) {
    stop = start + kSummed <= n ? start + kSummed : n - n % kLanes;
    const NotNumbers<format, kSummed> not_numbers(at.exp_avg + start, stop - start);
    Squares<Lanes> squares = {};
    int64_t i = start;
    const auto update = [&](const Moments<Lanes>& moments, int64_t at_i) {
      update_by<Lanes, moves, gain, format>(moments, at, at_i, asked, s, tables, squares);
    };
    const auto read = [&] {
      prefetch<takes_in, moves, format>(at, i + kAhead<format>);
      i += kLanes;
    };
    const auto take = [&] {
      read();
      const auto taken = take_in<Lanes>(at, i - kLanes, product, s, codes, squares.weighted);
      product += uint32_t(kLanes) * kKeyFactor;
      return taken;
    };
    const auto stored = [&](const Taken<Lanes>& taken, int64_t at_i) {
      return store_taken<Lanes, amsgrad>(taken, at, at_i, codes);
    };
    // Lanes are read while the ones before are used: two short chains instead of a long one; or, with the registers of
    // AVX-512 and where 8 bits take long to round, three, and the ones between are rounded.
    if constexpr (takes_in && (kLanes == 16 || format == k8And16Bit)) {
      Taken<Lanes> taken = take();
      Moments<Lanes> moments = {};
      while (i < stop) {
        const Taken<Lanes> next = take();
        const Moments<Lanes> following = stored(taken, i - 2 * kLanes);
        if (i > start + 2 * kLanes) update(moments, i - 3 * kLanes);
        moments = following;
        taken = next;
      }
      if (i > start + kLanes) update(moments, i - 2 * kLanes);
      update(stored(taken, i - kLanes), i - kLanes);
    } else {
      const auto next = [&] {
        if constexpr (takes_in) {
          const Taken<Lanes> taken = take();
          return stored(taken, i - kLanes);
        } else {
          read();
          return moments_at<Lanes>(at, i - kLanes, codes);
        }
      };
      Moments<Lanes> moments = next();
      while (i < stop) {
        const Moments<Lanes> following = next();
        update(moments, i - 2 * kLanes);
        moments = following;
      }
      update(moments, i - kLanes);
    }
    if (counted < kLanes) {
      const auto of_counted = [&](Lanes x) { return count<Lanes>() < uint32_t(counted) ? x : Lanes{}; };
      squares = {of_counted(squares.weighted), of_counted(squares.direction), of_counted(squares.adam)};
    }
    const float weighted = total(squares.weighted);
    found += {weighted, total(squares.direction), total(squares.adam)};
    put_right<takes_in, moves>(not_numbers, at, start, weighted, found);
  }
  if (start < n) {
    Padded<format> rest(given_streams, start, n, takes_in);
    found += loop_of_lanes<takes_in, moves, amsgrad, format, gain>(rest.streams(), kLanes, n - start, asked,
                                                                   given_settings, given_tables);
    rest.write_back();
  }
  return found;
}

#endif

// The same where there are no lanes, or none that take the power.
template <bool takes_in, bool moves, bool amsgrad, Format format, Gain gain>
Squares<double> loop_of_floats(const Streams<format>& at, int64_t n, const Asked& asked, const Settings& given_settings,
                               const PowerTables& tables) {
  const Settings s = given_settings;
  const Codes<float> codes;
  Squares<double> found = {0, 0, 0};
  for (int64_t start = 0; start < n; start += kSummed) {
    const int64_t stop = start + kSummed <= n ? start + kSummed : n;
    const NotNumbers<format, kSummed> not_numbers(at.exp_avg + start, stop - start);
    float weighted = 0, direction = 0, adam = 0;
#pragma omp simd reduction(+ : weighted, direction, adam)
    for (int64_t i = start; i < stop; ++i) {
      Squares<float> squares = {0, 0, 0};  // of this element: a reduction knows no struct
      Moments<float> moments;
      if constexpr (takes_in) {
        const uint32_t product = (uint32_t(i) + at.key) * kKeyFactor;
        moments = store_taken<float, amsgrad>(take_in<float>(at, i, product, s, codes, squares.weighted), at, i, codes);
      } else {
        moments = moments_at<float>(at, i, codes);
      }
      update_by<float, moves, gain, format>(moments, at, i, asked, s, tables, squares);
      weighted += squares.weighted;
      direction += squares.direction;
      adam += squares.adam;
    }
    found += {weighted, direction, adam};
    put_right<takes_in, moves>(not_numbers, at, start, weighted, found);
  }
  return found;
}

template <bool takes_in, bool moves, bool amsgrad, Format format>
Squares<double> loop(const Streams<format>& at, int64_t n, const Asked& asked, const Settings& s, Gain chosen,
                     const PowerTables& tables) {
  const auto with = [&](auto gain) {
    constexpr Gain g = decltype(gain)::value;
#ifdef HF_PDYN_LANES
    if constexpr (g != Gain::kPowerOfAny) {
      return loop_of_lanes<takes_in, moves, amsgrad, format, g>(at, n, n, asked, s, tables);
    }
#endif
    return loop_of_floats<takes_in, moves, amsgrad, format, g>(at, n, asked, s, tables);
  };
  switch (chosen) {
    case Gain::kOne:
      return with(std::integral_constant<Gain, Gain::kOne>());
    case Gain::kReciprocalRoot:
      return with(std::integral_constant<Gain, Gain::kReciprocalRoot>());
    case Gain::kReciprocalFourthRoot:
      return with(std::integral_constant<Gain, Gain::kReciprocalFourthRoot>());
    case Gain::kReciprocalFourthRootOfNormal:
      return with(std::integral_constant<Gain, Gain::kReciprocalFourthRootOfNormal>());
    case Gain::kReciprocal:
      return with(std::integral_constant<Gain, Gain::kReciprocal>());
    case Gain::kPowerOfNormal:
      return with(std::integral_constant<Gain, Gain::kPowerOfNormal>());
    case Gain::kPowerOfAny:
      break;
  }
  return with(std::integral_constant<Gain, Gain::kPowerOfAny>());
}

template <Format format>
Squares<double> loop(const Streams<format>& at, int64_t n, const Asked& asked, const Prepared& prepared) {
  const auto run = [&](auto chosen) {
    return chosen(at, n, asked, *prepared.settings, prepared.gain, prepared.of_v);
  };
  if constexpr (format == kFp32) {
    if (at.maximum) return asked.moves ? run(loop<true, true, true, format>) : run(loop<true, false, true, format>);
  }
  if (asked.takes_in) return asked.moves ? run(loop<true, true, false, format>) : run(loop<true, false, false, format>);
  return asked.moves ? run(loop<false, true, false, format>) : run(loop<false, false, false, format>);
}

// The same where moments are stored in fewer bits, for what `run` holds from `start` on.
template <Format format>
Squares<double> loop_of_codes(float* theta, const float* grad, const Run& run, int64_t start, int64_t n,
                              const Asked& asked, const Prepared& prepared) {
  Squares<double> found = {0, 0, 0};
  for (int64_t i = 0, length; i < n; i += length) {
    length = with_one_key(run, start + i, n - i);
    const float* grad_at = asked.takes_in ? grad + i : nullptr;
    const auto streams = streams_of<format>(run, start + i, theta + i, grad_at, *prepared.settings);
    found += loop<format>(streams, length, asked, prepared);
  }
  found.adam *= kMUnit<format> * kMUnit<format>;
  return found;
}

// The same of what `run` holds from `start` on.
template <Format format>
void moments_of_block(const float* grad, const Run& run, int64_t start, int64_t n, const Settings& s, float* m,
                      float* v) {
  for (int64_t i = 0, length; i < n; i += length) {
    length = with_one_key(run, start + i, n - i);
    const auto streams = streams_of<format>(run, start + i, nullptr, grad ? grad + i : nullptr, s);
    auto* maximum = static_cast<typename Stored<format>::V*>(run.max_exp_avg_sq);
    moments_of_streams(streams, length, s, maximum ? maximum + start + i : nullptr, m + i, v + i);
  }
}

// Whether moments, in their codes if they have some, take the gradient in in the loop that uses them.
bool in_one_loop(const Call& call, const Run& run, const Settings& s) {
  if (call.tasks & kMoments && s.one_minus_beta1 >= 0.5f) return false;  // by the other form of torch's lerp
  if (call.format == k8And16Bit && std::fabs(s.p) > 4) return false;  // scale times kMUnit might overflow
  return call.format == kFp32 || !(run.max_exp_avg_sq || call.tasks & kMeasure);
}

// Whether everything is, as it lies in memory: then there is no reason to stop after a block.
bool needs_no_scratch(const Call& call, const Run& run, const Settings& s) {
  return call.theta_type == kFloat32 && call.grad_type == kFloat32 && s.sign > 0 && s.l2 == 0 &&
         !(call.tasks & (kMeasure | kParameter)) && (call.tasks & kMoments || !(call.tasks & kGradient)) &&
         in_one_loop(call, run, s);
}

void step_block(const Call& call, const Run& run, const Prepared& prepared, int64_t start, int64_t n, double* sums) {
  const Settings& s = *prepared.settings;
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
  const bool moves = call.tasks & kApply, one_loop = in_one_loop(call, run, s);

  const float* grad = nullptr;
  bool loop_sums_gradient = false;
  if (call.tasks & (kMoments | kGradient | kMeasure)) {
    grad = as_floats(run.grad, call.grad_type, start, n, grad_scratch);
    if (call.tasks & kMeasure) add_norms(grad, n, prepared, sums);
    const bool changed = s.sign < 0 || s.l2 != 0;
    loop_sums_gradient = takes_in && !changed && one_loop;
    if (call.tasks & kGradient && !loop_sums_gradient) sums[kGradSq] += sum_of_squares(grad, n);
    if (changed) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) taken_in[i] = s.sign * grad[i] + (s.l2 != 0 ? s.l2 * theta[i] : 0.0f);
      grad = taken_in;
    }
  }

  if (!one_loop) {
    using Moments = void(const float*, const Run&, int64_t, int64_t, const Settings&, float*, float*);
    Moments* const of_formats[] = {moments_of_block<kFp32>, moments_of_block<k16Bit>, moments_of_block<k8And16Bit>};
    of_formats[call.format](takes_in ? grad : nullptr, run, start, n, s, exp_avg, second);
    takes_in = false;
  }
  const float* v = maximum ? maximum : second;
  if (maximum && !takes_in) {
    second = maximum;
    maximum = nullptr;
  }

  const Asked asked = {takes_in, moves, s.decay != 0, !moves || (call.tasks & (kDirection | kParameter)) != 0};
  const auto codes = call.format == k16Bit ? loop_of_codes<k16Bit> : loop_of_codes<k8And16Bit>;
  const Squares<double> squares = one_loop && !in_floats
                                      ? codes(theta, grad, run, start, n, asked, prepared)
                                      : loop<kFp32>({theta, grad, exp_avg, second, maximum, 0}, n, asked, prepared);
  if (call.tasks & kGradient && loop_sums_gradient) sums[kGradSq] += squares.weighted / s.one_minus_beta2;
  if (call.tasks & kDirection) {
    sums[kDirectionSq] += squares.direction;
    sums[kAdamSq] += squares.adam * s.adam_scale * s.adam_scale;
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
    Prepared prepared;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < call->n_chunks; ++chunk) {
      while (run_index + 1 < call->n_runs && call->runs[run_index + 1].first_chunk <= chunk) ++run_index;
      const Run& run = call->runs[run_index];
      prepared.take(call->settings[run.settings], *call);
      double* of_chunk = chunk_sums + chunk * kSums;
      for (int64_t i = 0; i < kSums; ++i) of_chunk[i] = 0;
      const int64_t start = (chunk - run.first_chunk) * kChunk;
      const int64_t stop = run.numel - start < kChunk ? run.numel : start + kChunk;
      const int64_t block = needs_no_scratch(*call, run, *prepared.settings) ? kChunk : kBlock;
      for (int64_t i = start; i < stop; i += block) {
        step_block(*call, run, prepared, i, stop - i < block ? stop - i : block, of_chunk);
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
