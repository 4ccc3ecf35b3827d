/* Vectors of floats and of 32-bit integers: the few operations that all kernels are written in.

   Intrinsics for AVX-512 and where AVX2 needs them; for the rest, and with -DNUBES_PLAIN, vector extensions and loops,
   which gcc and clang turn into what the machine has. */
#ifndef NUBES_VEC_H
#define NUBES_VEC_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__) && defined(__AVX512BW__) && !defined(NUBES_PLAIN)
#include <immintrin.h>
#define NUBES_VECTORS "avx512"
#define LANES 16
#define ROWS 12 /* of a tile of 32 columns: what 32 registers hold */
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(NUBES_PLAIN)
#include <immintrin.h>
#define NUBES_VECTORS "avx2"
#define LANES 8
#define ROWS 2
#else
#define NUBES_VECTORS "plain"
#define LANES 4
#define ROWS 2
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef _Float16 half;

#define EACH for (int i = 0; i < LANES; i++)

INLINE vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vi load_i(const void *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_i(void *p, vi v) { memcpy(p, &v, sizeof v); }

#if LANES == 16
INLINE vf splat(float x) { return _mm512_set1_ps(x); }
INLINE vi splat_i(int32_t x) { return (vi)_mm512_set1_epi32(x); }
INLINE vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf max_(vf a, vf b) { return _mm512_max_ps(a, b); } /* b if either is NaN */
INLINE vf abs_(vf a) { return _mm512_abs_ps(a); }
INLINE float sum_(vf a) { return _mm512_reduce_add_ps(a); }
INLINE float top_(vf a) { return _mm512_reduce_max_ps(a); }
INLINE int32_t sum_i(vi a) { return _mm512_reduce_add_epi32((__m512i)a); }
INLINE int nans(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
INLINE vf load_half(const half *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_half(half *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vf choose(uint16_t mask, vf yes, vf no) { return _mm512_mask_blend_ps(mask, no, yes); }
/* To the nearest of -127 ... 127; what NaN becomes is not told, but harmless. */
INLINE vi round_(vf v) { return (vi)_mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(-127)); }
INLINE void store_s8(int8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8((__m512i)v)); }

/* acc + the dot product of four unsigned bytes in each lane of `w` with the four signed bytes of `a`. */
INLINE vi dot4(vi acc, vi w, int32_t a) {
#ifdef __AVX512VNNI__
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
    const __m512i v = _mm512_set1_epi32(a), u = (__m512i)w;
    const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), odd = _mm512_srai_epi16(v, 8);
    const __m512i low = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)), even);
    return acc + (vi)low + (vi)_mm512_madd_epi16(_mm512_srli_epi16(u, 8), odd);
#endif
}

/* acc + the dot product of the two 16-bit numbers in each lane of `w` with the two of `a`. */
INLINE vi dot2(vi acc, vi w, int32_t a) {
#ifdef __AVX512VNNI__
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#else
    return acc + (vi)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(a));
#endif
}
/* Signed bytes as 16-bit numbers, two in each lane. */
INLINE vi load_pairs(const int8_t *p) { return (vi)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store_s16(int16_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16((__m512i)v)); }

#else
#if LANES == 8
INLINE vf splat(float x) { return _mm256_set1_ps(x); }
INLINE vi splat_i(int32_t x) { return (vi)_mm256_set1_epi32(x); }
INLINE vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf max_(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf load_half(const half *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store_half(half *p, vf v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
INLINE vi dot4(vi acc, vi w, int32_t a) {
    const __m256i v = _mm256_set1_epi32(a), u = (__m256i)w;
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), odd = _mm256_srai_epi16(v, 8);
    const __m256i low = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), even);
    return acc + (vi)low + (vi)_mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd);
}
INLINE vi dot2(vi acc, vi w, int32_t a) { return acc + (vi)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(a)); }
INLINE vi load_pairs(const int8_t *p) { return (vi)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p)); }
#else
INLINE vf splat(float x) { return (vf){x, x, x, x}; }
INLINE vi splat_i(int32_t x) { return (vi){x, x, x, x}; }
INLINE vf fma_(vf a, vf b, vf c) { return a * b + c; }
INLINE vf max_(vf a, vf b) {
    EACH a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
INLINE vf load_half(const half *p) {
    vf v;
    EACH v[i] = (float)p[i];
    return v;
}
INLINE void store_half(half *p, vf v) { EACH p[i] = (half)v[i]; }
INLINE vi dot4(vi acc, vi w, int32_t a) {
    uint8_t u[4 * LANES];
    int8_t s[4];
    memcpy(u, &w, sizeof u);
    memcpy(s, &a, sizeof s);
    EACH acc[i] += u[4 * i] * s[0] + u[4 * i + 1] * s[1] + u[4 * i + 2] * s[2] + u[4 * i + 3] * s[3];
    return acc;
}
INLINE vi dot2(vi acc, vi w, int32_t a) {
    int16_t u[2 * LANES], s[2];
    memcpy(u, &w, sizeof u);
    memcpy(s, &a, sizeof s);
    EACH acc[i] += u[2 * i] * s[0] + u[2 * i + 1] * s[1];
    return acc;
}
INLINE vi load_pairs(const int8_t *p) {
    int16_t u[2 * LANES];
    for (int i = 0; i < 2 * LANES; i++) u[i] = p[i];
    return load_i(u);
}
#endif
INLINE vf abs_(vf a) { return (vf)((vi)a & splat_i(0x7fffffff)); }
INLINE float sum_(vf a) {
    float s = 0;
    EACH s += a[i];
    return s;
}
INLINE float top_(vf a) {
    float m = a[0];
    EACH m = a[i] > m ? a[i] : m;
    return m;
}
INLINE int32_t sum_i(vi a) {
    int32_t s = 0;
    EACH s += a[i];
    return s;
}
INLINE int nans(vf a) {
    int any = 0;
    EACH any |= a[i] != a[i];
    return any;
}
INLINE vf choose(uint16_t mask, vf yes, vf no) {
    EACH no[i] = mask >> i & 1 ? yes[i] : no[i];
    return no;
}
INLINE vi round_(vf v) {
    vi r;
    EACH {
        const float x = v[i] < 127.0f ? v[i] : 127.0f;
        r[i] = (int32_t)__builtin_rintf(x > -127.0f ? x : -127.0f);
    }
    return r;
}
INLINE void store_s8(int8_t *p, vi v) { EACH p[i] = (int8_t)v[i]; }
INLINE void store_s16(int16_t *p, vi v) { EACH p[i] = (int16_t)v[i]; }
#endif

INLINE vi nearest(vf v) { return __builtin_convertvector(v + splat(0.5f), vi); } /* of what is not negative */
INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }

/* Two nibbles a byte: the lower ones, and the upper ones. */
INLINE vi lower(vi v) { return v & splat_i(0x0f0f0f0f); }
INLINE vi upper(vi v) { return (v >> 4) & splat_i(0x0f0f0f0f); }

#define LOG2_E 1.44269504f

/* 2^x to about 2e-7 of its value for x up to 127; 2^-126 for all that is less, and NaN for NaN. */
INLINE vf exp2_(vf x) {
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits */
    x = max_(splat(-126.0f), x);
    const vf t = x + magic, r = x - (t - magic);
    vf p = fma_(r, splat(1.5403530e-4f), splat(1.3333558e-3f));
    p = fma_(p, r, splat(9.6181291e-3f));
    p = fma_(p, r, splat(5.5504109e-2f));
    p = fma_(p, r, splat(2.4022651e-1f));
    p = fma_(p, r, splat(6.9314718e-1f));
    p = fma_(p, r, splat(1.0f));
    return p * (vf)(((vi)t << 23) + splat_i(0x3f800000)); /* times the power of two */
}

#endif
