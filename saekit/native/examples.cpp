// Merges the places of a chunk of text with the kept ones (examples.py, which has the shapes and the
// same in NumPy).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Place {
    float score, value;
    int32_t row;
    uint16_t place;
    uint64_t suffix;
    int64_t old;  // where it was kept, or -1
};

template <class T>
bool seen(std::vector<T>& before, T value) {
    if (std::find(before.begin(), before.end(), value) != before.end()) return true;
    before.push_back(value);
    return false;
}

}  // namespace

extern "C" {

// The chunk has n active features of `rows` [row, pos, k]; kept are `per_feature` places of each.
void merge(int64_t n, const int32_t* position, const int32_t* feature, const float* value,
           const float* score, const float* values, const int32_t* features,
           const uint64_t* suffixes, int64_t first_row, int64_t pos, int64_t k,
           int64_t per_feature, int64_t before, int64_t window, float* kept_score,
           float* kept_value, int32_t* kept_row, uint16_t* kept_place, uint64_t* kept_suffix,
           float* kept_window) {
    std::vector<int32_t> better;
    for (int64_t i = 0; i < n; i++)
        if (score[i] > kept_score[(feature[i] + 1) * per_feature - 1]) better.push_back(int32_t(i));
    std::sort(better.begin(), better.end(), [&](int32_t a, int32_t b) {
        if (feature[a] != feature[b]) return feature[a] < feature[b];
        return score[a] != score[b] ? score[a] > score[b] : a < b;
    });

    // activations of a feature around a place of this chunk; 0 beyond the row
    const auto fill_window = [&](int32_t wanted, const Place& at, float* out) {
        for (int64_t c = 0; c < window; c++) {
            const int64_t there = at.place + c - before;
            float sum = 0;
            if (there >= 0 && there < pos) {
                const int64_t start = ((at.row - first_row) * pos + there) * k;
#pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < k; j++)
                    sum += features[start + j] == wanted ? values[start + j] : 0.0f;
            }
            out[c] = sum;
        }
    };

    std::vector<Place> chosen;
    std::vector<int32_t> rows;
    std::vector<uint64_t> contexts;
    std::vector<float> windows(per_feature * window);
    for (size_t next = 0; next < better.size();) {
        const int32_t own = feature[better[next]];
        const int64_t start = own * per_feature, end = start + per_feature;
        chosen.clear(), rows.clear(), contexts.clear();
        int64_t old = start;
        while (int64_t(chosen.size()) < per_feature) {
            const bool has_new = next < better.size() && feature[better[next]] == own;
            const bool has_old = old < end && std::isfinite(kept_score[old]);
            if (!has_new && !has_old) break;
            Place at;
            if (has_new && (!has_old || score[better[next]] >= kept_score[old])) {
                const int32_t i = better[next++];
                at = {score[i], value[i], int32_t(position[i] / pos + first_row),
                      uint16_t(position[i] % pos), suffixes[position[i]], -1};
            } else {
                at = {kept_score[old], kept_value[old], kept_row[old], kept_place[old],
                      kept_suffix[old], old};
                old++;
            }
            if (!seen(rows, at.row) && !seen(contexts, at.suffix)) chosen.push_back(at);
        }
        while (next < better.size() && feature[better[next]] == own) next++;

        for (size_t i = 0; i < chosen.size(); i++) {
            float* out = windows.data() + i * window;
            if (chosen[i].old < 0)
                fill_window(own, chosen[i], out);
            else
                std::memcpy(out, kept_window + chosen[i].old * window, window * sizeof(float));
        }
        std::memcpy(kept_window + start * window, windows.data(),
                    chosen.size() * window * sizeof(float));
        // never fewer than before, as the rows of a chunk are new
        for (size_t i = 0; i < chosen.size(); i++) {
            const Place& at = chosen[i];
            kept_score[start + i] = at.score, kept_value[start + i] = at.value;
            kept_row[start + i] = at.row, kept_place[start + i] = at.place;
            kept_suffix[start + i] = at.suffix;
        }
    }
}

}  // extern "C"
