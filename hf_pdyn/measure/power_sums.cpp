// M(s) of policy/allocation_curve.py for float32 moments on CPUs: sum m_hat^2 (v_hat + eps)^-s over the elements of
// many pieces, for equally spaced s, in one pass over memory.
//
// Built and called by power_kernel.py, which mirrors `Piece`. Work is cut into chunks whose sums are stored apart:
// results do not depend on the number of threads. A block stays in L1 while every s is summed, each power from the one
// before by a product. NaN and infinity show in every sum of their piece.

#include "../optim/fused/powers.h"

namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kChunk = 32 * kBlock;
constexpr int64_t kMostSums = 64;  // COUNT of allocation_curve.py is less
constexpr int64_t kAtOnce = 4;  // powers between one load of a block and the next

using Lanes = float __attribute__((vector_size(64)));  // two or more registers where vectors are shorter
constexpr int64_t kLanes = 16;

struct Piece {
  const float* exp_avg;
  const float* exp_avg_sq;
  int64_t numel;
  int64_t first_chunk;  // of the call
  int64_t row;          // of the sums
  double of_m, of_v;    // m_hat = m / of_m, and v_hat likewise
  double eps;
  double weight;        // of the piece in its row
};

// Sums of rest factor, rest factor^2, ..., `count` of them, where `rest` keeps the last product. Whole blocks.
template <int64_t count>
void next_sums(float* rest, const float* factor, double* sums) {
  Lanes totals[count] = {};
  for (int64_t i = 0; i < kBlock; i += kLanes) {
    Lanes value, x;
    std::memcpy(&value, rest + i, sizeof(value));
    std::memcpy(&x, factor + i, sizeof(x));
    for (int64_t k = 0; k < count; ++k) totals[k] += value *= x;
    std::memcpy(rest + i, &value, sizeof(value));
  }
  for (int64_t k = 0; k < count; ++k) {
    sums[k] = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[k] += totals[k][lane];
  }
}

void all_sums(float* rest, const float* factor, int64_t count, double* sums) {
  int64_t k = 0;
  for (; k + kAtOnce <= count; k += kAtOnce) next_sums<kAtOnce>(rest, factor, sums + k);
  for (; k < count; ++k) next_sums<1>(rest, factor, sums + k);
}

// Adds a block's sum of w x^(1 - s) for s = first + step j, j < count, to `sums`; `below` of the s lie under 1.
void add_block(const float* m, const float* v, int64_t n, const Piece& piece, double step, int64_t below,
               int64_t count, double* sums) {
  alignas(64) float x[kBlock], w[kBlock], rest[kBlock];
  const float m_hat_scale = float(1 / piece.of_m), v_hat_scale = float(1 / piece.of_v), eps = float(piece.eps);
  const float share = 1.0f / float(n);
  float mean = 0, of_s_1 = 0, smallest = kInfinity;
#pragma omp simd reduction(+ : mean, of_s_1) reduction(min : smallest)
  for (int64_t i = 0; i < n; ++i) {
    x[i] = v[i] * v_hat_scale + eps;
    // Not m_hat^2 first: it has no normal float32 from |m_hat| = 1e-19 down.
    const float direction = m[i] * m_hat_scale / std::sqrt(x[i]);
    w[i] = rest[i] = direction * direction;
    mean += x[i] * share;
    of_s_1 += w[i];
    smallest = x[i] < smallest ? x[i] : smallest;
  }
  for (int64_t i = n; i < kBlock; ++i) {
    x[i] = 1;
    w[i] = rest[i] = 0;
  }
  if (!(mean < kInfinity) || !(of_s_1 < kInfinity)) {
    for (int64_t j = 0; j < count; ++j) sums[j] += std::numeric_limits<double>::quiet_NaN();
    return;
  }
  // Powers are of x over a power of two near its mean: none leaves float32 unless its share of the sum is nothing.
  int exponent;
  std::frexp(mean, &exponent);
  exponent = exponent < -125 ? -125 : (exponent > 126 ? 126 : exponent);  // so that both powers of two are normal
  const float over_reference = std::ldexp(1.0f, -exponent);
  double found[kMostSums];
  if (smallest * over_reference >= kSmallestNormal) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = power_of_normal(x[i] * over_reference, float(step));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) x[i] = power_of_any(x[i] * over_reference, float(step));
  }
  double upwards[kMostSums];  // from s = 1 down: 1 - s grows
  all_sums(rest, x, below, upwards);
  for (int64_t k = 0; k < below; ++k) found[below - 1 - k] = upwards[k];
  found[below] = of_s_1;
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) x[i] = 1.0f / x[i];
  all_sums(w, x, count - below - 1, found + below + 1);
  const double a_step = std::exp2(step * exponent);
  double scale = piece.weight * std::exp2(step * exponent * double(below));
  for (int64_t j = 0; j < count; ++j, scale /= a_step) sums[j] += scale * found[j];
}

}  // namespace

extern "C" int64_t hf_pdyn_power_chunk() { return kChunk; }

// sums: (rows, count), to which is added; chunk_sums: scratch of shape (n_chunks, count).
extern "C" void hf_pdyn_power_sums(const Piece* pieces, int64_t n_pieces, int64_t n_chunks, double step, int64_t below,
                                   int64_t count, int32_t threads, double* chunk_sums, double* sums) {
#pragma omp parallel num_threads(threads) if (n_chunks > 1)
  {
    int64_t index = 0;
#pragma omp for schedule(static)
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk) {
      while (index + 1 < n_pieces && pieces[index + 1].first_chunk <= chunk) ++index;
      const Piece& piece = pieces[index];
      double* of_chunk = chunk_sums + chunk * count;
      for (int64_t j = 0; j < count; ++j) of_chunk[j] = 0;
      const int64_t start = (chunk - piece.first_chunk) * kChunk;
      const int64_t stop = piece.numel - start < kChunk ? piece.numel : start + kChunk;
      for (int64_t i = start; i < stop; i += kBlock) {
        const int64_t n = stop - i < kBlock ? stop - i : kBlock;
        add_block(piece.exp_avg + i, piece.exp_avg_sq + i, n, piece, step, below, count, of_chunk);
      }
    }
  }
  for (int64_t r = 0; r < n_pieces; ++r) {
    const int64_t end = r + 1 < n_pieces ? pieces[r + 1].first_chunk : n_chunks;
    double* of_row = sums + pieces[r].row * count;
    for (int64_t chunk = pieces[r].first_chunk; chunk < end; ++chunk) {
      for (int64_t j = 0; j < count; ++j) of_row[j] += chunk_sums[chunk * count + j];
    }
  }
}
