// The sparse parts of a training step on the CPU.  Compiled on first use by cpu.py, which also
// documents shapes; the same results, slower, come from reference.py.
//
// Every sum has a fixed order that does not depend on the number of threads, so a run is
// reproduced bit by bit.  Matrices are row-major with one row per feature.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "numbers.h"

namespace {

template <class T>
inline void add_scaled(float* out, const T* row, float weight, int64_t d) {
#pragma omp simd
    for (int64_t i = 0; i < d; i++) out[i] += weight * to_float(row[i]);
}

// Values, errors and slopes of the pairs of each token; ends[p] is the number of features of prefix
// p; the features of a token are in ascending order.
template <class T>
void passes(const float* inputs, const float* target, const T* W_enc, const float* b_enc,
            const T* W_dec, const int32_t* features, const int64_t* starts, int64_t tokens,
            int64_t d, const int64_t* ends, const float* scales, int64_t prefixes, int64_t rectify,
            float* values, float* slopes, float* errors, T* upstream, double* squared) {
#pragma omp parallel
    {
        std::vector<int64_t> begin(prefixes + 1);  // first pair of each prefix
        std::vector<float> up(d);                  // d loss / d reconstruction
#pragma omp for schedule(static)
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
                begin[p] = j;
                for (; j < last && features[j] < ends[p]; j++) {
                    const int64_t following = j + last - first;  // a pair of the next token
                    if (following < starts[tokens]) fetch(W_enc + int64_t(features[following]) * d, d);
                    if (values[j] != 0)
                        add_scaled(error, W_dec + int64_t(features[j]) * d, -values[j], d);
                }
                squared[p * tokens + t] = double(dot(error, error, d));
            }
            begin[prefixes] = j;
            // features that start in prefix p write into all later reconstructions, too
            for (int64_t p = prefixes - 1; p >= 0; p--) {
                const float* error = errors + (p * tokens + t) * d;
                const bool is_last = p == prefixes - 1;
                T* out = upstream + (p * tokens + t) * d;
                for (int64_t i = 0; i < d; i++) {
                    up[i] = scales[p] * error[i] + (is_last ? 0.0f : up[i]);
                    put(out + i, up[i]);
                }
                for (j = begin[p]; j < begin[p + 1]; j++) {
                    const bool cut = rectify && values[j] == 0;
                    slopes[j] = cut ? 0.0f : dot(up.data(), W_dec + int64_t(features[j]) * d, d);
                }
            }
        }
    }
}

// Sum the pairs of each feature into the gradients (added to them) and count the positive ones.
template <class T>
void sums(const T* inputs, const T* upstream, const int32_t* features, const int64_t* starts,
          const float* values, const float* slopes, int64_t tokens, int64_t d, int64_t d_sae,
          const int64_t* ends, int64_t add, float* g_enc, float* g_bias, float* g_dec,
          int64_t* fired) {
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
        const T* up = upstream + prefix * tokens * d;
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

// See `SparsePass` in reference.py.  Where `narrow` is set, matrices of weights, the inputs of the
// second function, and upstream gradients are bfloat16, otherwise float32.
void forward_backward(const float* inputs, const float* target, const void* W_enc,
                      const float* b_enc, const void* W_dec, const int32_t* features,
                      const int64_t* starts, int64_t tokens, int64_t d, const int64_t* ends,
                      const float* scales, int64_t prefixes, int64_t rectify, int64_t narrow,
                      float* values, float* slopes, float* errors, void* upstream,
                      double* squared) {
    auto run = [&](auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        passes(inputs, target, (const T*)W_enc, b_enc, (const T*)W_dec, features, starts, tokens, d,
               ends, scales, prefixes, rectify, values, slopes, errors, out, squared);
    };
    narrow ? run((uint16_t*)upstream) : run((float*)upstream);
}

void weight_gradients(const void* inputs, const void* upstream, const int32_t* features,
                      const int64_t* starts, const float* values, const float* slopes,
                      int64_t tokens, int64_t d, int64_t d_sae, const int64_t* ends, int64_t add,
                      int64_t narrow, float* g_enc, float* g_bias, float* g_dec, int64_t* fired) {
    auto run = [&](auto* up) {
        sums((decltype(up))inputs, up, features, starts, values, slopes, tokens, d, d_sae, ends, add,
             g_enc, g_bias, g_dec, fired);
    };
    narrow ? run((const uint16_t*)upstream) : run((const float*)upstream);
}

// weights times the rows of a matrix; the order of sums does not depend on the number of threads.
void combine_rows(const void* matrix, const float* weights, int64_t rows, int64_t d, int64_t narrow,
                  float* out) {
    constexpr int64_t PARTS = 32;
    std::vector<float> parts(PARTS * d, 0.0f);
    auto run = [&](auto* row) {
#pragma omp parallel for schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t r = rows * part / PARTS; r < rows * (part + 1) / PARTS; r++)
                if (weights[r] != 0) add_scaled(parts.data() + part * d, row + r * d, weights[r], d);
    };
    narrow ? run((const uint16_t*)matrix) : run((const float*)matrix);
    std::fill(out, out + d, 0.0f);
    for (int64_t part = 0; part < PARTS; part++) add_scaled(out, parts.data() + part * d, 1.0f, d);
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
