// x W^T + b in 8 bits, for processors with AVX512-VNNI; int8.py documents what is computed.
//
// VPDPBUSD adds products of four neighbouring unsigned and signed bytes to an int32, so both
// matrices are packed in groups of four columns: tokens in tiles of TILE rows, for each group the
// four bytes of every row; features (made unsigned by adding 128) alike in panels of PANEL rows.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.h"
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define SUPPORTED 1
#endif

namespace {

constexpr int64_t TILE = 12, PANEL = 16;  // 24 sums of 16 numbers, in 32 registers
constexpr int64_t BLOCK = 43 * TILE;      // tokens that stay in the second-level cache
constexpr float LEVELS = 127;

// The row times `factors`, scaled so that its largest entry is LEVELS and rounded; the scale.
template <class T>
float quantise(const T* row, const float* factors, int64_t d, int8_t* bytes) {
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < d; i++) largest = std::max(largest, std::fabs(to_float(row[i]) * factors[i]));
    const float inverse = largest > 0 ? LEVELS / largest : 0;
#pragma omp simd
    for (int64_t i = 0; i < d; i++)
        bytes[i] = int8_t(int32_t(std::nearbyint(to_float(row[i]) * factors[i] * inverse)));
    return largest / LEVELS;
}

void spread(const int8_t* bytes, int64_t groups, int64_t rows, uint32_t flipped, uint32_t* packed) {
    for (int64_t g = 0; g < groups; g++) {
        uint32_t four;
        std::memcpy(&four, bytes + 4 * g, 4);
        packed[g * rows] = four ^ flipped;
    }
}

}  // namespace

extern "C" {

int supported() {
#ifdef SUPPORTED
    return 1;
#else
    return 0;
#endif
}

int padded_tokens(int64_t tokens) { return int((tokens + TILE - 1) / TILE * TILE); }

// shifts: 128 times the sum of each row's bytes, which the features' unsigned bytes add.
void pack_tokens(const float* x, const float* factors, int64_t tokens, int64_t d, uint32_t* packed,
                 float* scales, int32_t* shifts) {
#pragma omp parallel
    {
        std::vector<int8_t> bytes(d);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < padded_tokens(tokens); t++) {
            scales[t] = 0;
            std::fill(bytes.begin(), bytes.end(), 0);
            if (t < tokens) scales[t] = quantise(x + t * d, factors, d, bytes.data());
            int32_t sum = 0;
            for (int64_t i = 0; i < d; i++) sum += bytes[i];
            shifts[t] = 128 * sum;
            spread(bytes.data(), d / 4, TILE, 0, packed + t / TILE * TILE * d / 4 + t % TILE);
        }
    }
}

void pack_features(const uint16_t* W, const float* factors, int64_t features, int64_t d,
                   uint32_t* packed, float* scales) {
#pragma omp parallel
    {
        std::vector<int8_t> bytes(d);
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < features / PANEL; panel++)
            for (int64_t r = 0; r < PANEL; r++) {
                const int64_t f = panel * PANEL + r;
                scales[f] = quantise(W + f * d, factors, d, bytes.data());
                spread(bytes.data(), d / 4, PANEL, 0x80808080u, packed + panel * PANEL * d / 4 + r);
            }
    }
}

#ifdef SUPPORTED

#define ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

struct Columns {  // PANEL features
    __m512 scale, bias;
    explicit Columns(const float* scales, const float* biases)
        : scale(_mm512_loadu_ps(scales)), bias(_mm512_loadu_ps(biases)) {}
    void write(__m512i sum, int32_t shift, float token_scale, uint16_t* out) const {
        const __m512 product = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(shift)));
        const __m512 scaled = _mm512_mul_ps(product, _mm512_set1_ps(token_scale));
        const __m512i bits = _mm512_castps_si512(_mm512_fmadd_ps(scaled, scale, bias));
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));  // to nearest even
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
        _mm256_storeu_si256((__m256i*)out, _mm512_cvtepi32_epi16(rounded));
    }
};

// One tile of tokens by two panels of features.  Sums have names: arrays would live in memory.
static void multiply(const uint32_t* x, const uint32_t* w, int64_t groups, const float* scales,
                     const int32_t* shifts, int64_t rows, const float* feature_scales,
                     const float* biases, uint16_t* out, int64_t stride) {
    const uint32_t* second = w + PANEL * groups;
#define DECLARE(r) __m512i a##r = _mm512_setzero_si512(), b##r = a##r;
    ROWS(DECLARE)
    for (int64_t g = 0; g < groups; g++) {
        const __m512i w0 = _mm512_loadu_si512(w + g * PANEL);
        const __m512i w1 = _mm512_loadu_si512(second + g * PANEL);
#define ADD(r)                                                         \
    {                                                                  \
        const __m512i four = _mm512_set1_epi32(int32_t(x[g * TILE + r])); \
        a##r = _mm512_dpbusd_epi32(a##r, w0, four);                    \
        b##r = _mm512_dpbusd_epi32(b##r, w1, four);                    \
    }
        ROWS(ADD)
    }
    const Columns left(feature_scales, biases), right(feature_scales + PANEL, biases + PANEL);
#define WRITE(r)                                                           \
    if (r < rows) {                                                        \
        left.write(a##r, shifts[r], scales[r], out + r * stride);          \
        right.write(b##r, shifts[r], scales[r], out + r * stride + PANEL); \
    }
    ROWS(WRITE)
}

// out = x W^T + b in bfloat16, from packed matrices; `features` is a multiple of 2 PANEL.
void products(const uint32_t* x, const float* scales, const int32_t* shifts, const uint32_t* W,
              const float* feature_scales, const float* biases, int64_t tokens, int64_t d,
              int64_t features, uint16_t* out) {
    const int64_t groups = d / 4, panels = features / (2 * PANEL);
    const int64_t blocks = (tokens + BLOCK - 1) / BLOCK;
    const int64_t ranges = std::min(panels, 1 + 2 * omp_get_max_threads() / blocks);
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t range = 0; range < ranges; range++) {
            const int64_t first = block * BLOCK, last = panels * (range + 1) / ranges * 2 * PANEL;
            for (int64_t f = panels * range / ranges * 2 * PANEL; f < last; f += 2 * PANEL)
                for (int64_t t = first; t < std::min(tokens, first + BLOCK); t += TILE)
                    multiply(x + t * groups, W + f * groups, groups, scales + t, shifts + t,
                             std::min(TILE, tokens - t), feature_scales + f, biases + f,
                             out + t * features + f, features);
        }
}

#endif

}  // extern "C"
