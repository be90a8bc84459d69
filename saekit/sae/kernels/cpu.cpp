// The sparse parts of a training step on the CPU.  Compiled on first use by cpu.py, which also
// documents shapes; the same results, slower, come from reference.py.
//
// Every sum has a fixed order that does not depend on the number of threads, so a run is
// reproduced bit by bit.  Matrices are row-major with one row per feature.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 32;  // int16 values compared at once

// Bit i is set where p[i] >= threshold, for LANES values.
inline uint32_t at_least(const int16_t* p, int16_t threshold) {
#if defined(__AVX512BW__)
    return _mm512_cmpge_epi16_mask(_mm512_loadu_si512(p), _mm512_set1_epi16(threshold));
#else
    uint32_t mask = 0;
    for (int i = 0; i < LANES; i++) mask |= uint32_t(p[i] >= threshold) << i;
    return mask;
#endif
}

constexpr int WIDTH = 16;
typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4)));

// Four sums side by side: one alone would wait for each of its additions.
inline float dot(const float* a, const float* b, int64_t d) {
    Floats sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * WIDTH <= d; i += 4 * WIDTH)
        for (int j = 0; j < 4; j++) {
            Floats x, y;
            std::memcpy(&x, a + i + j * WIDTH, sizeof x);
            std::memcpy(&y, b + i + j * WIDTH, sizeof y);
            sums[j] += x * y;
        }
    const Floats together = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float sum = 0;
    for (int j = 0; j < WIDTH; j++) sum += together[j];
    for (; i < d; i++) sum += a[i] * b[i];
    return sum;
}

inline void add_scaled(float* out, const float* row, float weight, int64_t d) {
#pragma omp simd
    for (int64_t i = 0; i < d; i++) out[i] += weight * row[i];
}

// Rows come from all over a matrix: asked for early, they are in the cache when their turn comes.
inline void fetch(const float* row, int64_t d) {
    for (int64_t i = 0; i < d; i += WIDTH) __builtin_prefetch(row + i, 0, 2);
}

inline float to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t to_bf16(float value) {  // round to nearest even; finite values only
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// The k-th largest of n numbers, n a multiple of LANES: bisection, as counting needs no branches.
inline int16_t kth_largest(const int16_t* p, int64_t n, int64_t k) {
    int32_t low = INT16_MIN, high = INT16_MAX;  // at least k reach low
    while (low < high) {
        const int32_t middle = (low + high + 1) >> 1;
        int64_t count = 0;
        for (int64_t i = 0; i < n; i += LANES) count += __builtin_popcount(at_least(p + i, int16_t(middle)));
        if (count >= k)
            low = middle;
        else
            high = middle - 1;
    }
    return int16_t(low);
}

// A value that at least k of the n entries reach: the k-th largest of the maxima of disjoint
// groups of columns (each group with such a maximum holds one such entry).
int16_t lower_bound_of_kth(const int16_t* row, int64_t n, int64_t k, std::vector<int16_t>& maxima) {
    int64_t groups = 128;
    while (groups < 4 * k) groups *= 2;
    if (groups * 2 > n) return INT16_MIN;
    maxima.assign(row, row + groups);
    const int64_t whole = n / groups * groups;
    for (int64_t start = groups; start < whole; start += groups)
        for (int64_t g = 0; g < groups; g++) maxima[g] = std::max(maxima[g], row[start + g]);
    return kth_largest(maxima.data(), groups, k);
}

}  // namespace

extern "C" {

// centred = scale x - centre, and its bfloat16 copy if `narrow` is given; x is bfloat16 if `wide`
// is null.
void centre_rows(const uint16_t* x, const float* wide, float scale, const float* centre,
                 int64_t rows, int64_t d, float* centred, uint16_t* narrow) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* out = centred + r * d;
        if (wide) {
#pragma omp simd
            for (int64_t i = 0; i < d; i++) out[i] = scale * wide[r * d + i] - centre[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < d; i++) out[i] = scale * to_float(x[r * d + i]) - centre[i];
        }
        if (narrow)
#pragma omp simd
            for (int64_t i = 0; i < d; i++) narrow[r * d + i] = to_bf16(out[i]);
    }
}

// The k largest of each row of bfloat16 numbers, seen as int16: positive ones are ordered by their
// bits, negative ones come below in reverse.  Of equal entries the first columns are taken; the
// chosen columns are in ascending order.
void largest(const int16_t* pre, int64_t tokens, int64_t n, int64_t k, int32_t* chosen) {
#pragma omp parallel
    {
        std::vector<int16_t> maxima, values(n + LANES);
        std::vector<int32_t> columns(n + LANES);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++) {
            const int16_t* row = pre + t * n;
            const int16_t bound = lower_bound_of_kth(row, n, k, maxima);
            int64_t count = 0, column = 0;
            auto keep = [&](int64_t at) {
                values[count] = row[at];
                columns[count++] = int32_t(at);
            };
            for (; column + LANES <= n; column += LANES)
                for (uint32_t mask = at_least(row + column, bound); mask; mask &= mask - 1)
                    keep(column + __builtin_ctz(mask));
            for (; column < n; column++)
                if (row[column] >= bound) keep(column);
            const int64_t padded = (count + LANES - 1) / LANES * LANES;
            std::fill(values.begin() + count, values.begin() + padded, INT16_MIN);
            const int16_t smallest = count > k ? kth_largest(values.data(), padded, k) : INT16_MIN;
            int64_t ties = k;  // entries equal to the smallest that are taken
            for (int64_t i = 0; i < count; i++) ties -= values[i] > smallest;
            int32_t* out = chosen + t * k;
            for (int64_t i = 0; i < count; i++)
                if (values[i] > smallest || (values[i] == smallest && ties-- > 0)) *out++ = columns[i];
        }
    }
}

// How many numbers have each bit pattern >= floor (BatchTopK's threshold is read off this).
void count_bits(const int16_t* pre, int64_t size, int16_t floor, int64_t* counts) {
#pragma omp parallel
    {
        std::vector<int64_t> own(1 << 15, 0);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < size / LANES; block++) {
            const int16_t* p = pre + block * LANES;
            for (uint32_t mask = at_least(p, floor); mask; mask &= mask - 1)
                own[p[__builtin_ctz(mask)]]++;
        }
#pragma omp critical
        for (int64_t i = 0; i < (1 << 15); i++) counts[i] += own[i];
    }
    for (int64_t i = size / LANES * LANES; i < size; i++)
        if (pre[i] >= floor) counts[pre[i]]++;
}

// Columns with bits >= floor of each row, row after row.  Two calls: features == nullptr counts
// into starts[t + 1]; after a cumulative sum the second one writes.
void at_or_above(const int16_t* pre, int64_t tokens, int64_t n, int16_t floor, int64_t* starts,
                 int32_t* features) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const int16_t* row = pre + t * n;
        int64_t count = 0, column = 0;
        int32_t* out = features ? features + starts[t] : nullptr;
        for (; column + LANES <= n; column += LANES) {
            uint32_t mask = at_least(row + column, floor);
            if (!out) {
                count += __builtin_popcount(mask);
                continue;
            }
            for (; mask; mask &= mask - 1) out[count++] = int32_t(column + __builtin_ctz(mask));
        }
        for (; column < n; column++)
            if (row[column] >= floor) {
                if (out) out[count] = int32_t(column);
                count++;
            }
        if (!out) starts[t + 1] = count;
    }
}

// The preactivation of each pair.
void products(const float* inputs, const float* W_enc, const float* b_enc, const int32_t* features,
              const int64_t* starts, int64_t tokens, int64_t d, float* values) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = starts[t]; j < starts[t + 1]; j++)
            values[j] = dot(inputs + t * d, W_enc + int64_t(features[j]) * d, d) + b_enc[features[j]];
}

// Values, errors and slopes of the pairs of each token; see `SparsePass` in reference.py.
// ends[p] is the number of features of prefix p; the features of a token are in ascending order.
void forward_backward(const float* inputs, const float* target, const float* W_enc,
                      const float* b_enc, const float* W_dec, const int32_t* features,
                      const int64_t* starts, int64_t tokens, int64_t d, const int64_t* ends,
                      const float* scales, int64_t prefixes, int64_t rectify, float* values,
                      float* slopes, float* errors, float* upstream, double* squared) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const float* x = inputs + t * d;
        const int64_t first = starts[t], last = starts[t + 1];
        for (int64_t j = first; j < last; j++) {
            fetch(W_dec + int64_t(features[j]) * d, d);
            const float pre = dot(x, W_enc + int64_t(features[j]) * d, d) + b_enc[features[j]];
            values[j] = rectify && !(pre > 0) ? 0.0f : pre;
        }
        // the error after each prefix
        int64_t j = first;
        for (int64_t p = 0; p < prefixes; p++) {
            float* error = errors + (p * tokens + t) * d;
            std::memcpy(error, p ? error - tokens * d : target + t * d, d * sizeof(float));
            for (; j < last && features[j] < ends[p]; j++) {
                const int64_t following = j + last - first;  // a pair of the next token
                if (following < starts[tokens]) fetch(W_enc + int64_t(features[following]) * d, d);
                if (values[j] != 0) add_scaled(error, W_dec + int64_t(features[j]) * d, -values[j], d);
            }
            squared[p * tokens + t] = double(dot(error, error, d));
        }
        // d loss / d reconstruction of the features that start in prefix p: all later ones, too
        for (int64_t p = prefixes - 1; p >= 0; p--) {
            const float* error = errors + (p * tokens + t) * d;
            float* up = upstream + (p * tokens + t) * d;
            const float* later = up + tokens * d;
            const bool is_last = p == prefixes - 1;
            for (int64_t i = 0; i < d; i++) up[i] = scales[p] * error[i] + (is_last ? 0.0f : later[i]);
        }
        j = first;
        for (int64_t p = 0; p < prefixes; p++) {
            const float* up = upstream + (p * tokens + t) * d;
            for (; j < last && features[j] < ends[p]; j++)
                slopes[j] = rectify && values[j] == 0
                                ? 0.0f
                                : dot(up, W_dec + int64_t(features[j]) * d, d);
        }
    }
}

// Sum the pairs of each feature into the gradients (added to them) and count the positive ones.
void weight_gradients(const float* inputs, const float* upstream, const int32_t* features,
                      const int64_t* starts, const float* values, const float* slopes,
                      int64_t tokens, int64_t d, int64_t d_sae, const int64_t* ends, int64_t add,
                      float* g_enc, float* g_bias, float* g_dec, int64_t* fired) {
    const int64_t pairs = starts[tokens];
    std::vector<int64_t> place(d_sae + 1, 0);
    std::vector<int32_t> token(pairs);
    std::vector<int64_t> pair(pairs);
    for (int64_t j = 0; j < pairs; j++) place[features[j] + 1]++;
    for (int64_t f = 0; f < d_sae; f++) place[f + 1] += place[f];
    std::vector<int64_t> next(place.begin(), place.end() - 1);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = starts[t]; j < starts[t + 1]; j++) {
            const int64_t at = next[features[j]]++;
            token[at] = int32_t(t);
            pair[at] = j;
        }
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t f = 0; f < d_sae; f++) {
        int64_t prefix = 0;
        while (f >= ends[prefix]) prefix++;
        const float* up = upstream + prefix * tokens * d;
        float* enc = g_enc + f * d;
        float* dec = g_dec + f * d;
        float bias = add ? g_bias[f] : 0.0f;
        int64_t positive = 0;
        if (!add) {
            std::memset(enc, 0, d * sizeof(float));
            std::memset(dec, 0, d * sizeof(float));
        }
        for (int64_t at = place[f]; at < place[f + 1]; at++) {
            const int64_t following = int64_t(token[std::min(at + 1, pairs - 1)]) * d;
            fetch(inputs + following, d);
            fetch(up + following, d);
            const float value = values[pair[at]], slope = slopes[pair[at]];
            if (slope != 0) add_scaled(enc, inputs + int64_t(token[at]) * d, slope, d);
            if (value != 0) add_scaled(dec, up + int64_t(token[at]) * d, value, d);
            bias += slope;
            positive += value > 0;
        }
        g_bias[f] = bias;
        fired[f] = positive;
    }
}

// Adam on the rows of a matrix.  `unit` != 0: the gradient loses its part along the row (what
// normalising would undo), and the row has norm 1 afterwards.  A shadow gets the bfloat16 copy.
void adam_rows(float* weights, const float* gradient, float* mean, float* square, int64_t rows,
               int64_t d, float beta1, float beta2, float rate, float root_correction, float eps,
               int64_t unit, uint16_t* shadow) {
#pragma omp parallel for schedule(static)
    for (int64_t f = 0; f < rows; f++) {
        float* w = weights + f * d;
        const float* g = gradient + f * d;
        float* m = mean + f * d;
        float* v = square + f * d;
        const float along = unit ? dot(g, w, d) : 0.0f;
        float norm = 0;
#pragma omp simd reduction(+ : norm)
        for (int64_t i = 0; i < d; i++) {
            const float slope = g[i] - along * w[i];
            m[i] = beta1 * m[i] + (1 - beta1) * slope;
            v[i] = beta2 * v[i] + (1 - beta2) * slope * slope;
            w[i] -= rate * m[i] / (std::sqrt(v[i]) * root_correction + eps);
            norm += w[i] * w[i];
        }
        if (unit) {
            const float inverse = 1 / std::max(std::sqrt(norm), 1e-30f);
#pragma omp simd
            for (int64_t i = 0; i < d; i++) w[i] *= inverse;
        }
        if (shadow)
#pragma omp simd
            for (int64_t i = 0; i < d; i++) shadow[f * d + i] = to_bf16(w[i]);
    }
}

}  // extern "C"
