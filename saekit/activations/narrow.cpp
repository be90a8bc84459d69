// What stands between the matrix products of the bfloat16 forward pass (narrow.py): LayerNorm with
// the residual addition before it, and causal attention.  Sums are float32, in a fixed order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

inline float to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t to_bf16(float value) {  // round to nearest even; NaN stays NaN, as does infinity
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16) | 0x40 : rounded);
}

constexpr int WIDTH = 16;
typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), aligned(4)));

inline Floats load(const float* p) {
    Floats v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// e^x for x <= 0, relative error below 2e-7; 0 below -87, NaN for NaN (the shift leaves its bits).
inline Floats exp_negative(Floats x) {
    const Ints tiny = x < -87.0f;
    const Floats y = (tiny ? Floats{} : x) * 1.44269504f;
    const Floats shifted = y + 12582912.0f;  // 1.5 * 2^23: its last bits are the rounded y
    const Floats f = (y - (shifted - 12582912.0f)) * 0.693147181f;
    Floats p = f * (1.0f / 720) + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    const Ints scaled = (Ints)p + ((Ints)shifted << 23);
    return tiny ? Floats{} : (Floats)scaled;
}

// One head of one sequence: qkv[t] holds query, key and value of position t, `stride` apart.
template <int D>
void one_head(const uint16_t* qkv, int64_t pos, int64_t stride, int64_t d_model, float scale,
              std::vector<float>& memory, uint16_t* out) {
    constexpr int PARTS = (D + WIDTH - 1) / WIDTH;  // vectors per value
    constexpr int QUERIES = 8, PAIR = 2;            // rows and vectors computed together, in registers
    const int64_t padded = (pos + PAIR * WIDTH - 1) / (PAIR * WIDTH) * PAIR * WIDTH;
    memory.assign(padded * (D + PARTS * WIDTH + QUERIES), 0.0f);
    float* keys = memory.data();        // [D][padded]
    float* values = keys + padded * D;  // [padded][PARTS * WIDTH]
    float* pattern = values + padded * PARTS * WIDTH;
    for (int64_t block = 0; block < pos; block += WIDTH) {  // whole cache lines of keys at a time
        const int64_t size = std::min<int64_t>(WIDTH, pos - block);
        const uint16_t* key = qkv + block * stride + d_model;
        for (int i = 0; i < D; i++)
            for (int64_t t = 0; t < size; t++)
                keys[i * padded + block + t] = to_float(key[t * stride + i]);
        for (int64_t t = 0; t < size; t++)
            for (int i = 0; i < D; i++)
                values[(block + t) * PARTS * WIDTH + i] = to_float(key[t * stride + d_model + i]);
    }
    Ints lane;
    for (int c = 0; c < WIDTH; c++) lane[c] = c;
    for (int64_t first = 0; first < pos; first += QUERIES) {
        const int64_t seen = std::min<int64_t>(first + QUERIES, pos);
        float query[D][QUERIES];
        for (int r = 0; r < QUERIES; r++) {
            const uint16_t* own = qkv + std::min(first + r, pos - 1) * stride;
            for (int i = 0; i < D; i++) query[i][r] = scale * to_float(own[i]);
        }
        Floats largest[QUERIES];
        for (int r = 0; r < QUERIES; r++) largest[r] = Floats{} - INFINITY;
        for (int64_t k = 0; k < seen; k += PAIR * WIDTH) {
            Floats score[QUERIES][PAIR] = {};
            for (int i = 0; i < D; i++) {
                const float* key = keys + i * padded + k;
                const Floats left = load(key), right = load(key + WIDTH);
                for (int r = 0; r < QUERIES; r++) {
                    score[r][0] += query[i][r] * left;
                    score[r][1] += query[i][r] * right;
                }
            }
            for (int r = 0; r < QUERIES; r++)
                for (int j = 0; j < PAIR; j++) {
                    const Ints future = lane + int32_t(k + j * WIDTH) > int32_t(first + r);
                    score[r][j] = future ? Floats{} - INFINITY : score[r][j];
                    largest[r] = score[r][j] > largest[r] ? score[r][j] : largest[r];
                    store(pattern + r * padded + k + j * WIDTH, score[r][j]);
                }
        }
        float inverse[QUERIES];
        for (int r = 0; r < QUERIES; r++) {
            float top = largest[r][0];
            for (int c = 1; c < WIDTH; c++) top = std::max(top, largest[r][c]);
            Floats sums = {};
            for (int64_t k = 0; k < seen; k += WIDTH) {
                const Floats weight = exp_negative(load(pattern + r * padded + k) - top);
                store(pattern + r * padded + k, weight);
                sums += weight;
            }
            float sum = 0;
            for (int c = 0; c < WIDTH; c++) sum += sums[c];
            inverse[r] = 1 / sum;
        }
        constexpr int TOGETHER = PARTS < PAIR ? PARTS : PAIR;
        for (int part = 0; part < PARTS; part += TOGETHER) {
            Floats mixed[QUERIES][TOGETHER] = {};
            for (int64_t k = 0; k < seen; k++) {
                Floats value[TOGETHER];
                for (int v = 0; v < TOGETHER; v++) value[v] = load(values + (k * PARTS + part + v) * WIDTH);
                for (int r = 0; r < QUERIES; r++)
                    for (int v = 0; v < TOGETHER; v++) mixed[r][v] += pattern[r * padded + k] * value[v];
            }
            float rows[QUERIES][TOGETHER * WIDTH];
            for (int r = 0; r < QUERIES; r++)
                for (int v = 0; v < TOGETHER; v++) store(rows[r] + v * WIDTH, mixed[r][v] * inverse[r]);
            const int width = std::min(TOGETHER * WIDTH, D - part * WIDTH);
            for (int64_t r = 0; first + r < seen; r++)
                for (int i = 0; i < width; i++)
                    out[(first + r) * d_model + part * WIDTH + i] = to_bf16(rows[r][i]);
        }
    }
}

template <int D>
void all_heads(const uint16_t* qkv, int64_t batch, int64_t pos, int64_t heads, float scale,
               uint16_t* out) {
    const int64_t d_model = heads * D;
#pragma omp parallel
    {
        std::vector<float> memory;
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
