// The k largest preactivations of every token, for processors with AVX512-BF16 (topk.py has the
// proof and the shapes).

#include "numbers.h"
#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t TILES = 2;  // of tokens at once: their bounds stay in the second-level cache
constexpr int64_t AHEAD = 4;  // rows that are fetched before they are needed
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// Integers in the order of the numbers with these bits, and back; NaN is larger than any number.
inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

inline int32_t key_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return ordered(bits);
}

// The k-th largest of n numbers, n a multiple of WIDTH: bisection, as counting needs no branches.
float kth_largest(const float* p, int64_t n, int64_t k) {
    int64_t low = INT32_MIN, high = INT32_MAX;  // at least k reach low
    float value = LOWEST;
    while (low < high) {
        const int64_t middle = (low + high + 1) >> 1;
        const int32_t bits = ordered(int32_t(middle));
        float least;
        std::memcpy(&least, &bits, sizeof least);
        int64_t count = 0;
        for (int64_t i = 0; i < n; i += WIDTH)
            count += __builtin_popcount(
                _mm512_cmp_ps_mask(_mm512_loadu_ps(p + i), _mm512_set1_ps(least), _CMP_GE_OQ));
        if (count >= k) {
            low = middle;
            value = least;
        } else {
            high = middle - 1;
        }
    }
    return value;
}

// How many of n keys come before key i in falling order; n is a multiple of WIDTH.
inline int64_t rank_of(const int32_t* keys, int64_t n, int64_t i) {
    const __m512i own = _mm512_set1_epi32(keys[i]);
    int64_t rank = 0;
    for (int64_t o = 0; o < n; o += WIDTH) {
        const __m512i others = _mm512_loadu_si512(keys + o);
        uint32_t before = _mm512_cmpgt_epi32_mask(others, own);
        if (o <= i) {  // of equal ones the first
            const uint32_t earlier = i - o < WIDTH ? (1u << (i - o)) - 1 : 0xFFFF;
            before |= _mm512_cmpeq_epi32_mask(others, own) & earlier;
        }
        rank += __builtin_popcount(before);
    }
    return rank;
}

// One dictionary; what is per feature goes on for `columns`, a multiple of 2 PANEL.
struct Weights {
    const uint32_t* panels;  // W_enc in bfloat16
    const float* rows;       // W_enc
    const float* bias;       // -infinity beyond d_sae
    const float* doubt;      // what additions of the bias may be off
    const float* norms;      // |w|, above 0 but beyond d_sae: 0 times infinity would be NaN
    const float* rounding;   // |w - w~|, alike
    int64_t d_in, columns;
};

// The products of a token are off by at most per_norm |w| + per_rounding |w - w~|.
struct Bound {
    float per_norm, per_rounding;
};

// Rounds a token and says what that costs; `lost` is for its own use.
Bound round_token(const float* x, int64_t d_in, uint16_t* narrow, float* lost, float* kept) {
    int64_t i = 0;
    for (; i + WIDTH <= d_in; i += WIDTH) {
        const __m256bh two = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
        std::memcpy(narrow + i, &two, sizeof two);
    }
    for (; i < d_in; i++) narrow[i] = to_bf16(x[i]);
    for (i = 0; i < d_in; i++) kept[i] = to_float(narrow[i]);
    for (i = 0; i < d_in; i++) lost[i] = x[i] - kept[i];
    // of roundings: d_in products, here and (with its remainder) in `dot`, and the bias
    const float sums = (d_in + d_in / 32 + d_in % 64 + 24) * 0x1p-24f;
    constexpr float MARGIN = 1.0001f;  // for the rounding of norms and of bounds
    const float tiny = std::sqrt(float(d_in)) * 0x1p-63f;  // `_LOST` of topk.py
    return {MARGIN * (std::sqrt(dot(lost, lost, d_in)) + sums * std::sqrt(dot(x, x, d_in)) + tiny),
            MARGIN * (1 + sums) * std::sqrt(dot(kept, kept, d_in)) + tiny};
}

// Groups of columns whose largest entries tell where to begin; 0 if there are too few columns.
int64_t groups_for(int64_t k, int64_t columns) {
    int64_t groups = 2 * PANEL;
    while (groups < 4 * k) groups *= 2;
    return 2 * groups <= columns ? groups : 0;
}

class TopK {
public:
    TopK(const Weights& w, int64_t k)
        : w(w), groups(groups_for(k, w.columns)), pairs((w.d_in + 1) / 2), k(k), narrow(2 * pairs),
          tiles(TILES * TILE * pairs), bounds(TILES * TILE), at_most(TILES * TILE * w.columns),
          at_least(TILES * TILE * groups), lost(w.d_in), kept(w.d_in), listed(w.columns + WIDTH),
          keys(w.columns + WIDTH), exact(w.columns + WIDTH) {}

    // For up to TILES * TILE tokens.
    void operator()(const float* x, int64_t tokens, float* values, int64_t* features) {
        for (int64_t t = 0; t < TILES * TILE; t++) {
            if (t < tokens)
                bounds[t] =
                    round_token(x + t * w.d_in, w.d_in, narrow.data(), lost.data(), kept.data());
            pack_row(narrow.data(), pairs, t, tiles.data());
        }
        multiply((tokens + TILE - 1) / TILE);
        for (int64_t t = 0; t < tokens; t++)
            choose(x + t * w.d_in, t, values + t * k, features + t * k);
    }

private:
    // What every preactivation is at most; what the largest of every group is at least.
    void multiply(int64_t used) {
        std::fill(at_least.begin(), at_least.end(), LOWEST);
        for (int64_t o = 0; o < w.columns; o += 2 * PANEL)
            for (int64_t tile = 0; tile < used; tile++)
                multiply_tile(tiles.data() + tile * TILE * pairs, w.panels + o * pairs, pairs,
                              [&](int64_t row, __m512 left, __m512 right) {
                                  limit(tile * TILE + row, o, left);
                                  limit(tile * TILE + row, o + PANEL, right);
                              });
    }

    inline void limit(int64_t t, int64_t o, __m512 product) {
        const __m512 norm = _mm512_loadu_ps(w.norms + o);
        const __m512 rounding = _mm512_loadu_ps(w.rounding + o);
        const __m512 off = _mm512_fmadd_ps(
            norm, _mm512_set1_ps(bounds[t].per_norm),
            _mm512_fmadd_ps(rounding, _mm512_set1_ps(bounds[t].per_rounding),
                            _mm512_loadu_ps(w.doubt + o)));
        const __m512 value = _mm512_add_ps(product, _mm512_loadu_ps(w.bias + o));
        _mm512_storeu_ps(at_most.data() + t * w.columns + o, _mm512_add_ps(value, off));
        if (!groups) return;
        float* group = at_least.data() + t * groups + o % groups;
        const __m512 least = _mm512_sub_ps(value, off);
        _mm512_storeu_ps(group, _mm512_max_ps(least, _mm512_loadu_ps(group)));
    }

    void choose(const float* x, int64_t t, float* values, int64_t* features) {
        // k groups have an entry that reaches the k-th largest of what they are at least
        const float start = groups ? kth_largest(at_least.data() + t * groups, groups, k) : LOWEST;
        const int64_t count = list(at_most.data() + t * w.columns, start);
        if (count < k) {  // all comparisons with NaN are false
            std::fill(values, values + k, std::numeric_limits<float>::quiet_NaN());
            std::iota(features, features + k, 0);
            return;
        }
        for (int64_t i = 0; i < count; i++) {
            if (i + AHEAD < count) fetch(w.rows + listed[i + AHEAD] * w.d_in, w.d_in);
            exact[i] = dot(x, w.rows + listed[i] * w.d_in, w.d_in) + w.bias[listed[i]];
            keys[i] = key_of(exact[i]);
        }
        const int64_t padded = (count + WIDTH - 1) / WIDTH * WIDTH;
        std::fill(keys.begin() + count, keys.begin() + padded, INT32_MIN);
        for (int64_t i = 0; i < count; i++) {
            const int64_t rank = rank_of(keys.data(), padded, i);
            if (rank >= k) continue;
            values[rank] = exact[i];
            features[rank] = listed[i];
        }
    }

    // The columns that may reach `start`; how many.
    int64_t list(const float* row, float start) {
        int64_t count = 0;
        __m512i column = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512 least = _mm512_set1_ps(std::max(start, std::numeric_limits<float>::lowest()));
        for (int64_t o = 0; o < w.columns; o += WIDTH) {
            const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(row + o), least, _CMP_GE_OQ);
            _mm512_storeu_si512(&listed[count], _mm512_maskz_compress_epi32(mask, column));
            count += __builtin_popcount(mask);
            column = _mm512_add_epi32(column, _mm512_set1_epi32(WIDTH));
        }
        return count;
    }

    const Weights& w;
    const int64_t groups, pairs, k;
    std::vector<uint16_t> narrow;
    std::vector<uint32_t> tiles;
    std::vector<Bound> bounds;
    std::vector<float> at_most, at_least, lost, kept;
    std::vector<int32_t> listed, keys;
    std::vector<float> exact;
};

}  // namespace

extern "C" {

void top_k(const float* x, const uint32_t* panels, const float* rows, const float* bias,
           const float* doubt, const float* norms, const float* rounding, int64_t tokens,
           int64_t d_in, int64_t columns, int64_t k, float* values, int64_t* features) {
    const Weights w = {panels, rows, bias, doubt, norms, rounding, d_in, columns};
    constexpr int64_t BLOCK = TILES * TILE;
#pragma omp parallel
    {
        TopK run(w, k);
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < tokens; t += BLOCK)
            run(x + t * d_in, std::min(BLOCK, tokens - t), values + t * k, features + t * k);
    }
}

}  // extern "C"

#endif
