/* softmax(q kᵀ · scale + bias, masked) v for one query of one head. */
#ifndef ATTENTION_H
#define ATTENTION_H
#include "vectors.h"

/* Who sees what: the same for all attentions of a kind. Strides count entries of `seen` or `bias`. */
typedef struct {
  int64_t slots;  /* S, this pass's counted */
  int64_t start;  /* slot where this pass's keys and values are put; -1: they are there */
  int64_t fold;   /* rows that read the same source */
  int64_t causal; /* a query sees slots up to its own, which is among the last L */
  int64_t by_source, by_head, by_query, by_slot;
  const uint8_t *seen; /* NULL, or which are seen */
  const float *bias;   /* NULL, or what is added to scores; -inf where nothing is seen */
} Sight;

/* Keys and values [sources, G, S, K] of one attention; strides of both in floats. */
typedef struct { int64_t by_source, by_head, by_slot; float *keys, *values; } Keys;

/* One query: whose it is, which of its pass, and how many of the pass come after it. */
typedef struct {
  int64_t source, head, kv_head, number, after, d_head;
  float scale;
} Query;

/* q times each of eight keys. A sum's order is its own, whichever lane it stands in. */
INLINE v8f dots(const float *q, const float *const *keys, int64_t d) {
  v8f sum[LANES];
  int64_t k = 0;
  for (int i = 0; i < LANES; i++) sum[i] = all8(0);
  for (; k + LANES <= d; k += LANES) {
    v8f part = load8(q + k);
    for (int i = 0; i < LANES; i++) sum[i] += part * load8(keys[i] + k);
  }
  v8f rest = all8(0);
  for (; k < d; k++)
    for (int i = 0; i < LANES; i++) rest[i] += q[k] * keys[i][k];
  return across_each(sum) + rest;
}

/* o[0..n*8] = sum of p[j] times the row at[j] of v; n is a constant where this is called. */
INLINE void mix(const int n, const float *p, const int32_t *at, int64_t count, const float *v, int64_t by_slot, float *o) {
  v8f acc[8];
  for (int i = 0; i < n; i++) acc[i] = all8(0);
  for (int64_t j = 0; j < count; j++) {
    const float *row = v + (at ? at[j] : j) * by_slot;
    for (int i = 0; i < n; i++) acc[i] += p[j] * load8(row + i * LANES);
  }
  for (int i = 0; i < n; i++) store8(o + i * LANES, acc[i]);
}

/* `p` and `at` have room for all slots. Only what is seen takes part, in the order of slots, so padding changes no bit. */
static void attend(const Keys *in, const Sight *sight, const Query *of, const float *q, float *o, float *p, int32_t *at) {
  int64_t d = of->d_head, base = of->source * in->by_source + of->kv_head * in->by_head;
  int64_t most = sight->slots, count = 0;
  if (sight->causal) most -= of->after;
  int64_t mask = of->source * sight->by_source + of->head * sight->by_head + of->number * sight->by_query;
  const float *keys = in->keys + base, *bias = sight->bias ? sight->bias + mask : NULL;
  if (!sight->seen && !bias) {
    at = NULL;
    count = most;
  } else
    for (int64_t s = 0; s < most; s++) {
      at[count] = (int32_t)s;
      count += sight->seen ? sight->seen[mask + s * sight->by_slot] : bias[s * sight->by_slot] != -INFINITY;
    }
  float scale = of->scale, largest = -INFINITY;
  for (int64_t j = 0; j < count; j += LANES) { /* eight keys at a time: their sums go across together */
    const float *k[LANES];
    for (int i = 0; i < LANES; i++) {
      int64_t s = j + i < count ? j + i : count - 1;
      k[i] = keys + (at ? at[s] : s) * in->by_slot;
    }
    v8f found = dots(q, k, d) * scale;
    if (bias)
      for (int i = 0; i < LANES && j + i < count; i++) found[i] += bias[at[j + i] * sight->by_slot];
    store8(p + j, found);
  }
  for (int64_t j = 0; j < count; j++)
    if (!(p[j] <= largest)) largest = p[j];
  for (int64_t j = count; j < up(count); j++) p[j] = -INFINITY;
  v8f sum = {0};
  for (int64_t j = 0; j < count; j += LANES) {
    v8f e = exp8(load8(p + j) - largest);
    store8(p + j, e);
    sum += e;
  }
  float rate = count ? 1.0f / across(sum) : 0; /* who sees nothing gets zeros */
  for (int64_t j = 0; j < up(count); j += LANES) store8(p + j, load8(p + j) * rate);
  const float *values = in->values + base;
  int64_t k = 0;
  for (; k + 64 <= d; k += 64) mix(8, p, at, count, values + k, in->by_slot, o + k);
  for (; k + 32 <= d; k += 32) mix(4, p, at, count, values + k, in->by_slot, o + k);
  for (; k + 8 <= d; k += 8) mix(1, p, at, count, values + k, in->by_slot, o + k);
  for (; k < d; k++) {
    o[k] = 0;
    for (int64_t j = 0; j < count; j++) o[k] += p[j] * values[(at ? at[j] : j) * in->by_slot + k];
  }
}
#endif
