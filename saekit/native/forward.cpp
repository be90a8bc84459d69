// What stands between the matrix products of the bfloat16 forward pass (bf16.py): LayerNorm with
// the residual addition before it, and causal attention.  Sums are float32, in a fixed order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "numbers.h"

namespace {

constexpr int QUERIES = 8, PAIR = 2;  // rows and vectors whose sums stay in registers

// Two neighbouring bfloat16 factors; with AVX512-BF16 one instruction adds their products.
struct Two {
    uint16_t first, second;
};

#if defined(__AVX512BF16__)
inline Floats add_products(Floats sum, const Two* a, Two b) {
    int32_t bits;
    std::memcpy(&bits, &b, 4);
    const __m512bh all = (__m512bh)_mm512_set1_epi32(bits);
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(a), all);
}

inline void store_narrow(uint16_t* p, Floats values) {
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)values);
    std::memcpy(p, &narrow, sizeof narrow);
}
#else
inline Floats add_products(Floats sum, const Two* a, Two b) {
    Floats first, second;
    for (int c = 0; c < WIDTH; c++) {
        first[c] = to_float(a[c].first);
        second[c] = to_float(a[c].second);
    }
    return sum + first * to_float(b.first) + second * to_float(b.second);
}

inline void store_narrow(uint16_t* p, Floats values) {
    for (int c = 0; c < WIDTH; c++) p[c] = to_bf16(values[c]);
}
#endif

// One head of one sequence: qkv[t] holds query, key and value of position t, `stride` apart.
template <int D>
void one_head(const uint16_t* qkv, int64_t pos, int64_t stride, int64_t d_model, float scale,
              std::vector<uint32_t>& memory, uint16_t* out) {
    constexpr int PARTS = (D + WIDTH - 1) / WIDTH;  // vectors per value
    const int64_t padded = (pos + PAIR * WIDTH - 1) / (PAIR * WIDTH) * PAIR * WIDTH;
    memory.assign(padded * (D + PARTS * WIDTH + 3 * QUERIES) / 2, 0);
    Two* keys = (Two*)memory.data();                            // [D / 2][padded]
    Two* values = keys + padded * D / 2;                        // [padded / 2][PARTS * WIDTH]
    Two* weights = values + padded / 2 * PARTS * WIDTH;         // [QUERIES][padded / 2]
    float* scores = (float*)(weights + padded / 2 * QUERIES);   // [QUERIES][padded]
    for (int64_t block = 0; block < pos; block += WIDTH) {      // whole cache lines at a time
        const int64_t size = std::min<int64_t>(WIDTH, pos - block);
        const uint16_t* key = qkv + block * stride + d_model;
        for (int i = 0; i < D / 2; i++)
            for (int64_t t = 0; t < size; t++)
                std::memcpy(keys + i * padded + block + t, key + t * stride + 2 * i, sizeof(Two));
        for (int64_t t = 0; t < size; t++) {
            Two* row = values + (block + t) / 2 * PARTS * WIDTH;
            const uint16_t* value = key + t * stride + d_model;
            for (int i = 0; i < D; i++) (t % 2 ? row[i].second : row[i].first) = value[i];
        }
    }
    Ints lane;
    for (int c = 0; c < WIDTH; c++) lane[c] = c;
    for (int64_t first = 0; first < pos; first += QUERIES) {
        const int64_t seen = std::min<int64_t>(first + QUERIES, pos);
        Two query[D / 2][QUERIES];
        for (int r = 0; r < QUERIES; r++) {
            const uint16_t* own = qkv + std::min(first + r, pos - 1) * stride;
            for (int i = 0; i < D / 2; i++) std::memcpy(&query[i][r], own + 2 * i, sizeof(Two));
        }
        Floats largest[QUERIES];
        for (int r = 0; r < QUERIES; r++) largest[r] = Floats{} - INFINITY;
        for (int64_t k = 0; k < seen; k += PAIR * WIDTH) {
            Floats score[QUERIES][PAIR] = {};
            for (int i = 0; i < D / 2; i++)
                for (int r = 0; r < QUERIES; r++)
                    for (int j = 0; j < PAIR; j++)
                        score[r][j] = add_products(
                            score[r][j], keys + i * padded + k + j * WIDTH, query[i][r]);
            for (int r = 0; r < QUERIES; r++)
                for (int j = 0; j < PAIR; j++) {
                    const Ints future = lane + int32_t(k + j * WIDTH) > int32_t(first + r);
                    score[r][j] = future ? Floats{} - INFINITY : score[r][j] * scale;
                    largest[r] = score[r][j] > largest[r] ? score[r][j] : largest[r];
                    store(scores + r * padded + k + j * WIDTH, score[r][j]);
                }
        }
        float inverse[QUERIES];
        for (int r = 0; r < QUERIES; r++) {
            float top = largest[r][0];
            for (int c = 1; c < WIDTH; c++) top = std::max(top, largest[r][c]);
            Floats sums = {};
            for (int64_t k = 0; k < seen; k += WIDTH) {
                const Floats weight = exp_negative(load(scores + r * padded + k) - top);
                store_narrow((uint16_t*)(weights + (r * padded + k) / 2), weight);
                sums += weight;
            }
            float sum = 0;
            for (int c = 0; c < WIDTH; c++) sum += sums[c];
            inverse[r] = 1 / sum;
        }
        constexpr int TOGETHER = PARTS < PAIR ? PARTS : PAIR;
        for (int part = 0; part < PARTS; part += TOGETHER) {
            Floats mixed[QUERIES][TOGETHER] = {};
            for (int64_t k = 0; k < (seen + 1) / 2; k++)
                for (int r = 0; r < QUERIES; r++)
                    for (int v = 0; v < TOGETHER; v++)
                        mixed[r][v] = add_products(
                            mixed[r][v], values + (k * PARTS + part + v) * WIDTH,
                            weights[r * padded / 2 + k]);
            uint16_t rows[QUERIES][TOGETHER * WIDTH];
            for (int r = 0; r < QUERIES; r++)
                for (int v = 0; v < TOGETHER; v++)
                    store_narrow(rows[r] + v * WIDTH, mixed[r][v] * inverse[r]);
            const int width = std::min(TOGETHER * WIDTH, D - part * WIDTH);
            for (int64_t r = 0; first + r < seen; r++)
                std::memcpy(out + (first + r) * d_model + part * WIDTH, rows[r], width * 2);
        }
    }
}

template <int D>
void all_heads(const uint16_t* qkv, int64_t batch, int64_t pos, int64_t heads, float scale,
               uint16_t* out) {
    const int64_t d_model = heads * D;
#pragma omp parallel
    {
        std::vector<uint32_t> memory;
#pragma omp for schedule(static)
        for (int64_t at = 0; at < batch * heads; at++) {
            const int64_t row = at / heads * pos, head = at % heads * D;
            one_head<D>(qkv + row * 3 * d_model + head, pos, 3 * d_model, d_model, scale, memory,
                        out + row * d_model + head);
        }
    }
}

}  // namespace

extern "C" {

// out = softmax(scale Q K^T, causal) V for qkv [batch, pos, 3, heads, d_head].
void attend(const uint16_t* qkv, int64_t batch, int64_t pos, int64_t heads, int64_t d_head,
            float scale, uint16_t* out) {
    switch (d_head) {
        case 8: return all_heads<8>(qkv, batch, pos, heads, scale, out);
        case 16: return all_heads<16>(qkv, batch, pos, heads, scale, out);
        case 32: return all_heads<32>(qkv, batch, pos, heads, scale, out);
        case 64: return all_heads<64>(qkv, batch, pos, heads, scale, out);
        case 128: return all_heads<128>(qkv, batch, pos, heads, scale, out);
    }
}

// stream += delta (if there is one); row r is kept as row place[r] of `kept` unless that is
// negative; normed = LayerNorm(stream) (if it is wanted).
void add_norm(float* stream, const uint16_t* delta, const int32_t* place, uint16_t* kept,
              const float* gamma, const float* beta, float eps, int64_t rows, int64_t d,
              uint16_t* normed) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float* x = stream + r * d;
        float sum = 0;
        if (delta) {
            const uint16_t* added = delta + r * d;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < d; i++) {
                x[i] += to_float(added[i]);
                sum += x[i];
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < d; i++) sum += x[i];
        }
        if (kept && place[r] >= 0) {
            uint16_t* copy = kept + place[r] * d;
#pragma omp simd
            for (int64_t i = 0; i < d; i++) copy[i] = to_bf16(x[i]);
        }
        if (!normed) continue;
        const float mean = sum / d;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < d; i++) squares += (x[i] - mean) * (x[i] - mean);
        const float inverse = 1 / std::sqrt(squares / d + eps);
#pragma omp simd
        for (int64_t i = 0; i < d; i++)
            normed[r * d + i] = to_bf16((x[i] - mean) * inverse * gamma[i] + beta[i]);
    }
}

}  // extern "C"
