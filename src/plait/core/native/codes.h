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
  float *exact;    /* [rows, width], x itself, zeros after its end */
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

/* One row of x: padded, and where it is rounded, group by group to 127 steps either way. */
static void prepare(Rows *x, int64_t row, const float *from, int64_t d_in) {
  float *exact = x->exact + row * x->groups * GROUP;
  memcpy(exact, from, d_in * sizeof(float));
  memset(exact + d_in, 0, (x->groups * GROUP - d_in) * sizeof(float));
  for (int64_t j = row * x->groups; j < (row + 1) * x->groups; j++, exact += GROUP) {
    v8f v[4], sum = {0};
    for (int k = 0; k < 4; k++) {
      memcpy(&v[k], exact + k * LANES, sizeof *v);
      sum += v[k];
    }
    x->sum[j] = across(sum);
    if (!x->rounded) continue;
    v8i largest = {0}, total = {0}; /* as whole numbers, the bits of what is not negative have the order of the floats, NaN last */
    for (int k = 0; k < 4; k++) {
      v8i bits = (v8i)v[k] & 0x7fffffff, more = bits > largest;
      largest = (bits & more) | (largest & ~more);
    }
    int32_t most = 0;
    for (int r = 0; r < LANES; r++) most = largest[r] > most ? largest[r] : most;
    float scale;
    memcpy(&scale, &most, 4);
    int sound = most < 0x7f800000; /* neither infinite nor NaN */
    scale = sound ? scale / 127 : NAN;
    v8i whole[4];
    float by = sound && scale > 0 ? scale : INFINITY;
    for (int k = 0; k < 4; k++) {
      const float nearest = 12582912; /* 1.5 * 2^23: adding it rounds to a whole number, halves to the even one */
      v8f steps = sound ? v[k] / by + nearest - nearest : (v8f){0};
      whole[k] = __builtin_convertvector(steps, v8i);
      total += whole[k];
    }
    narrow(whole, x->rounded + j * GROUP);
    x->total[j] = 0;
    for (int r = 0; r < LANES; r++) x->total[j] += total[r];
    x->scale[j] = scale;
    x->sum[j] = scale * (float)x->total[j];
  }
}

#endif
