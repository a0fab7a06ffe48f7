/* Weights in 8 or 4 bits times a few rows of x, in the layout of core/quantised.py: groups of 32 values, and eight rows of W side by
   side, so that one vector holds four values of each row and a sum needs no shuffling at its end. */
#ifndef CODES_H
#define CODES_H
#include <stdlib.h>
#include "vectors.h"

enum { AHEAD = 4096 }; /* bytes of weights that are fetched before they are needed */
enum { GROUP = 32, TILE = 4, NEAR = 16 }; /* TILE: rows of x whose sums stay in registers; NEAR: rows that stay in the first cache */
#if defined(__AVX512VNNI__)
enum { ABOVE = 128 }; /* the instruction takes unsigned bytes: 8-bit weights are moved up, and the sum of x is taken off */
#else
enum { ABOVE = 0 };
#endif

/* Rows of x as the sums below want them. */
typedef struct {
  int8_t *rounded; /* [rows, width], x / scale; absent where x stays as it is */
  float *exact;    /* [rows, width], x itself, zeros after its end; not looked at where x is rounded */
  float *scale;    /* [rows, groups] */
  float *sum;      /* [rows, groups], of x as it is multiplied */
  int32_t *total;  /* [rows, groups], of `rounded` */
  int64_t groups;
} Rows;

INLINE v8i load(const uint8_t *p) { v8i v; memcpy(&v, p, 32); return v; }

INLINE v8i four(const int8_t *p) { /* the same four bytes in each lane */
  int32_t t;
  memcpy(&t, p, 4);
  return (v8i){t, t, t, t, t, t, t, t};
}

INLINE v8f halves(const uint16_t *p) {
#ifdef __F16C__
  return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  v8f out;
  for (int r = 0; r < LANES; r++) {
    uint32_t sign = (uint32_t)(p[r] & 0x8000) << 16, exponent = p[r] >> 10 & 31, rest = p[r] & 0x3ff, bits;
    float value = ldexpf((float)rest, -24); /* below 2^-14 there is no leading one */
    if (exponent) {
      bits = (exponent == 31 ? 255 : exponent + 112) << 23 | rest << 13;
      memcpy(&value, &bits, 4);
    }
    out[r] = sign ? -value : value;
  }
  return out;
#endif
}

INLINE v8i dot_plain(v8i sum, v8i w, v8i x, int is_signed) {
  uint8_t a[32];
  int8_t b[32];
  memcpy(a, &w, 32);
  memcpy(b, &x, 32);
  for (int r = 0; r < LANES; r++)
    for (int j = 0; j < 4; j++) sum[r] += (is_signed ? (int8_t)a[4 * r + j] : a[4 * r + j]) * b[4 * r + j];
  return sum;
}

/* Adds to each lane the product of its four signed bytes of w and x. */
INLINE v8i add8(v8i sum, v8i w, v8i x) {
#if defined(__AVX512VNNI__)
  return (v8i)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)(w ^ (int32_t)0x80808080), (__m256i)x);
#elif defined(__AVX2__) /* the sign goes over to x, since one factor must be unsigned; 2 * 128 * 127 fits 16 bits */
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
  return sum + (v8i)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  return dot_plain(sum, w, x, 1);
#endif
}

/* The same for w of 0 to 15; a group's sum stays within 16 bits (8 * 2 * 15 * 127), so it is widened once, by `sum4`. */
INLINE v8i add4(v8i sum, v8i w, v8i x) {
#if defined(__AVX512VNNI__)
  return (v8i)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__AVX2__)
  return (v8i)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)x));
#else
  return dot_plain(sum, w, x, 0);
#endif
}

INLINE v8i sum4(v8i sum) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  return (v8i)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
  return sum;
#endif
}

/* m rows of x from `at` on, times eight rows of W. `bits` and `m` are constants where this is called, so that loops unroll. */
INLINE void tile(const int m, const int bits, const uint8_t *w, const uint16_t *scale, const uint16_t *least, const Rows *x, int64_t at,
                 v8f *out) {
  const v8f none = {0};
  const v8i zero = {0};
  v8f acc[TILE];
  for (int i = 0; i < m; i++) acc[i] = none;
  for (int64_t g = 0; g < x->groups; g++, scale += LANES) {
    if (m == 1) /* one row of x: weights are all that is read, from memory */
      for (int v = 0; v < bits; v += 2) __builtin_prefetch(w + 32 * v + AHEAD);
    v8f d = halves(scale), part[TILE];
    if (x->rounded) {
      v8i dot[TILE];
      for (int i = 0; i < m; i++) dot[i] = zero;
      for (int v = 0; v < bits; v++, w += 32) {
        v8i q = load(w);
        v8i low = q & 0x0f0f0f0f, high = (v8i)((v8u)q >> 4) & 0x0f0f0f0f;
        for (int i = 0; i < m; i++) {
          const int8_t *p = x->rounded + ((at + i) * x->groups + g) * GROUP + 4 * v;
          dot[i] = bits == 8 ? add8(dot[i], q, four(p)) : add4(add4(dot[i], low, four(p)), high, four(p + 16));
        }
      }
      for (int i = 0; i < m; i++) {
        int64_t j = (at + i) * x->groups + g;
        v8i whole = bits == 8 ? dot[i] - ABOVE * x->total[j] : sum4(dot[i]);
        part[i] = __builtin_convertvector(whole, v8f) * x->scale[j];
      }
    } else {
      for (int i = 0; i < m; i++) part[i] = none;
      for (int v = 0; v < bits; v++, w += 32) {
        v8i q = load(w);
        for (int j = 0; j < 4; j++) {
          v8f low = __builtin_convertvector(bits == 8 ? q << (24 - 8 * j) >> 24 : q >> 8 * j & 15, v8f);
          v8f high = __builtin_convertvector(q >> (8 * j + 4) & 15, v8f);
          for (int i = 0; i < m; i++) {
            const float *p = x->exact + ((at + i) * x->groups + g) * GROUP + 4 * v + j;
            part[i] += low * p[0];
            if (bits == 4) part[i] += high * p[16];
          }
        }
      }
    }
    for (int i = 0; i < m; i++) acc[i] += part[i] * d;
    if (bits == 4) { /* codes count from the least value, or from 8 below zero */
      v8f from = least ? halves(least + g * LANES) : d * -8.0f;
      for (int i = 0; i < m; i++) acc[i] += from * x->sum[(at + i) * x->groups + g];
    }
  }
  for (int i = 0; i < m; i++) out[i] = acc[i];
}

static void tiles8(int m, const uint8_t *w, const uint16_t *scale, const uint16_t *least, const Rows *x, int64_t at, v8f *out) {
  if (m == 4) tile(4, 8, w, scale, least, x, at, out);
  else if (m == 3) tile(3, 8, w, scale, least, x, at, out);
  else if (m == 2) tile(2, 8, w, scale, least, x, at, out);
  else tile(1, 8, w, scale, least, x, at, out);
}

static void tiles4(int m, const uint8_t *w, const uint16_t *scale, const uint16_t *least, const Rows *x, int64_t at, v8f *out) {
  if (m == 4) tile(4, 4, w, scale, least, x, at, out);
  else if (m == 3) tile(3, 4, w, scale, least, x, at, out);
  else if (m == 2) tile(2, 4, w, scale, least, x, at, out);
  else tile(1, 4, w, scale, least, x, at, out);
}

/* 32 whole numbers of at most 127 as bytes. */
INLINE void narrow(const v8i *whole, int8_t *to) {
#ifdef __AVX2__
  __m256i pairs = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)whole[0], (__m256i)whole[1]),
                                     _mm256_packs_epi32((__m256i)whole[2], (__m256i)whole[3])); /* within halves of the vector */
  _mm256_storeu_si256((__m256i *)to, _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
  for (int k = 0; k < GROUP; k++) to[k] = (int8_t)whole[k / LANES][k % LANES];
#endif
}

/* One number of eight, halves with halves: the largest, or the sum. BOTH and TWO put two vectors, or two numbers, together. */
#ifdef __AVX2__
#define ACROSS8(NAME, BOTH, TWO)                                                                              \
  INLINE int32_t NAME(v8i v) {                                                                                \
    __m128i a = BOTH(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));            \
    a = BOTH(a, _mm_shuffle_epi32(a, 0x4e));                                                                  \
    return _mm_cvtsi128_si32(BOTH(a, _mm_shuffle_epi32(a, 0xb1)));                                            \
  }
#else
#define ACROSS8(NAME, BOTH, TWO)                                  \
  INLINE int32_t NAME(v8i v) {                                    \
    int32_t found = v[0];                                         \
    for (int r = 1; r < LANES; r++) found = TWO(found, v[r]);     \
    return found;                                                 \
  }
#endif
#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define SUM(a, b) ((a) + (b))
ACROSS8(most8, _mm_max_epi32, LARGER)
ACROSS8(added8, _mm_add_epi32, SUM)

/* Group j of x in 127 steps either way of its largest value. */
INLINE void round_group(Rows *x, int64_t j, const v8f *v) {
  v8i largest = {0}, total = {0}, whole[4]; /* as whole numbers, the bits of what is not negative have the order of the floats, NaN last */
  for (int k = 0; k < 4; k++) {
    v8i bits = (v8i)v[k] & 0x7fffffff, more = bits > largest;
    largest = (bits & more) | (largest & ~more);
  }
  int32_t most = most8(largest);
  float scale;
  memcpy(&scale, &most, 4);
  int sound = most < 0x7f800000; /* neither infinite nor NaN */
  scale = sound ? scale / 127 : NAN;
  float by = sound && scale > 0 ? scale : INFINITY;
  for (int k = 0; k < 4; k++) {
    const float nearest = 12582912; /* 1.5 * 2^23: adding it rounds to a whole number, halves to the even one */
    v8f steps = sound ? v[k] / by + nearest - nearest : (v8f){0};
    whole[k] = __builtin_convertvector(steps, v8i);
    total += whole[k];
  }
  narrow(whole, x->rounded + j * GROUP);
  x->total[j] = added8(total);
  x->scale[j] = scale;
  x->sum[j] = scale * (float)x->total[j];
}

/* One row of x, counted up with zeros: rounded, or copied. */
static void prepare(Rows *x, int64_t row, const float *from, int64_t d_in) {
  for (int64_t g = 0; g < x->groups; g++) {
    int64_t j = row * x->groups + g, there = d_in - g * GROUP < GROUP ? d_in - g * GROUP : GROUP;
    float end[GROUP] = {0}, *to = x->rounded ? end : x->exact + j * GROUP;
    const float *values = from + g * GROUP;
    if (!x->rounded || there < GROUP) {
      memcpy(to, values, there * sizeof(float));
      memset(to + there, 0, (GROUP - there) * sizeof(float));
      values = to;
    }
    v8f v[4];
    memcpy(v, values, sizeof v);
    if (x->rounded) round_group(x, j, v);
    else x->sum[j] = across(v[0] + v[1] + v[2] + v[3]);
  }
}

#endif
