// The table of (token, feature) pairs of token_pairs.py: open addressing with linear probing in an array
// of fixed size.  The caller owns the array and sees to it that slots stay free.

#include <algorithm>
#include <cstdint>

namespace {

struct Entry {
    int64_t key;  // token * d_sae + feature; negative where the slot is free
    double total;
    int32_t count;
    float largest;
};

constexpr int64_t AHEAD = 16;  // pairs whose slots are fetched before they are needed

inline Entry* home(Entry* table, int64_t slots, int64_t key) {
    uint64_t hash = uint64_t(key) * 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio: spreads bits
    hash = (hash ^ (hash >> 32)) * 0x9E3779B97F4A7C15u;
    return table + int64_t((unsigned __int128)hash * uint64_t(slots) >> 64);  // any size will do
}

// The slot of a key, or the free one where it belongs.
inline Entry* find(Entry* table, int64_t slots, int64_t key) {
    Entry* entry = home(table, slots, key);
    while (entry->key >= 0 && entry->key != key)
        if (++entry == table + slots) entry = table;
    return entry;
}

}  // namespace

extern "C" {

// Counts activations; those of negative tokens are passed over.  Returns how many pairs are new.
int64_t count_pairs(Entry* table, int64_t slots, int64_t d_sae, const int32_t* token,
                    const int32_t* feature, const float* value, int64_t n) {
    int64_t added = 0;
    const auto key_of = [&](int64_t i) { return token[i] * d_sae + feature[i]; };
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n && token[i + AHEAD] >= 0)
            __builtin_prefetch(home(table, slots, key_of(i + AHEAD)), 1);
        if (token[i] < 0) continue;
        Entry* entry = find(table, slots, key_of(i));
        if (entry->key < 0) {
            *entry = {key_of(i), 0.0, 0, value[i]};
            added++;
        }
        entry->count++;
        entry->total += value[i];
        entry->largest = std::max(entry->largest, value[i]);
    }
    return added;
}

// Puts entries of distinct keys into a table that has none of them.
void put_pairs(Entry* table, int64_t slots, const Entry* entries, int64_t n) {
    for (int64_t i = 0; i < n; i++) *find(table, slots, entries[i].key) = entries[i];
}

}  // extern "C"
