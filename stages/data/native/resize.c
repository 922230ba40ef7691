/* Resizing as torch does it for images of 8 bits: bilinear, without antialiasing.
 *
 * Weights are whole numbers; each direction, columns first, is rounded to 8 bits. What is reproduced is
 * `upsample_avx_bilinear_bicubic_uint8` of ATen, and the weights of its `HelperInterpBase`.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#if defined(__AVX2__) && !defined(PATCHLINE_SCALAR)
#include <immintrin.h>
#define WITH_AVX2 1
#else
#define WITH_AVX2 0
#endif

static double triangle(double distance) {
    distance = fabs(distance);
    return distance < 1.0 ? 1.0 - distance : 0.0;
}

/* The first pixel and the pair of weights of new pixel i, as `_compute_indices_min_size_weights` of ATen has them
 * (aten/src/ATen/native/cpu/UpSampleKernel.cpp, `area_pixel_compute_source_index` and `guard_index_and_lambda`).
 */
static int32_t weigh(int32_t i, int32_t before, double scale, double pair[2]) {
    double place = scale * (i + 0.5) - 0.5;
    if (place < 0)
        place = 0;
    /* In single precision there, so that a place just below a pixel is that pixel's. */
    int32_t first = (int32_t)floorf((float)place);
    if (first > before - 1)
        first = before - 1;
    double part = fmin(fmax(place - first, 0.0), 1.0);
    pair[0] = triangle(-part);
    pair[1] = triangle(1.0 - part);
    if (first == before - 1) {
        pair[0] += pair[1];
        pair[1] = 0;
    }
    return first;
}

static int make_steps(Steps *steps, int32_t before, int32_t after) {
    double(*pairs)[2] = malloc((size_t)after * sizeof *pairs);
    steps->first = malloc((size_t)after * sizeof *steps->first);
    steps->weights = malloc((size_t)after * sizeof *steps->weights);
    if (!pairs || !steps->first || !steps->weights) {
        free(pairs);
        return 0;
    }
    double scale = (double)before / after, most = 0;
    steps->copied = before == after;
    for (int32_t i = 0; i < after; i++) {
        if (steps->copied) {
            steps->first[i] = i;
            pairs[i][0] = 1, pairs[i][1] = 0;
        } else {
            steps->first[i] = weigh(i, before, scale, pairs[i]);
        }
        most = fmax(most, fmax(pairs[i][0], pairs[i][1]));
    }
    /* As many bits as the largest weight leaves in 16 bits with a sign. */
    for (steps->precision = 0; steps->precision < 22; steps->precision++)
        if ((int)(0.5 + most * (1 << (steps->precision + 1))) >= 1 << 15)
            break;
    for (int32_t i = 0; i < after; i++)
        for (int k = 0; k < 8; k++)
            steps->weights[i][k] = (int16_t)(0.5 + pairs[i][k & 1] * (1 << steps->precision));
    free(pairs);
    return 1;
}

/* In the other order, for a mirrored image. */
static void mirror(Steps *steps, int32_t count) {
    for (int32_t low = 0, high = count - 1; low < high; low++, high--) {
        int32_t first = steps->first[low];
        int16_t weights[8];
        steps->first[low] = steps->first[high];
        steps->first[high] = first;
        memcpy(weights, steps->weights[low], sizeof weights);
        memcpy(steps->weights[low], steps->weights[high], sizeof weights);
        memcpy(steps->weights[high], weights, sizeof weights);
    }
}

/* A row [*, 3] to `count` new pixels. Both rows have SLACK behind their end. */
static void along(const Steps *steps, const uint8_t *restrict row, int32_t count, uint8_t *restrict new_row) {
    int32_t i = 0;
    int precision = steps->precision;
#if WITH_AVX2
    const __m256i half = _mm256_set1_epi32(1 << (precision - 1));
    /* The channels of two pixels side by side: r r g g b b, and two that come to nothing. */
    const __m128i pairs = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 8, 11, 9, 12, 10, 13, -1, -1);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    const __m128i dense = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (; i + 4 <= count; i += 4) {
        const int32_t *first = steps->first + i;
        const __m256i *weights = (const __m256i *)(steps->weights + i);
        __m256i sums[2];
        for (int k = 0; k < 2; k++) {
            int64_t one, other;
            memcpy(&one, row + 3 * (ptrdiff_t)first[2 * k], 8);
            memcpy(&other, row + 3 * (ptrdiff_t)first[2 * k + 1], 8);
            __m256i pixels = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(_mm_set_epi64x(other, one), pairs));
            __m256i sum = _mm256_madd_epi16(pixels, _mm256_loadu_si256(weights + k));
            sums[k] = _mm256_srai_epi32(_mm256_add_epi32(sum, half), precision);
        }
        __m256i words = _mm256_packs_epi32(sums[0], sums[1]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, words), order);
        __m128i packed = _mm_shuffle_epi8(_mm256_castsi256_si128(bytes), dense);
        _mm_storeu_si128((__m128i *)(new_row + 3 * (ptrdiff_t)i), packed);
    }
#endif
    for (; i < count; i++) {
        const uint8_t *pixel = row + 3 * (ptrdiff_t)steps->first[i];
        int first = steps->weights[i][0], second = steps->weights[i][1];
        for (int c = 0; c < 3; c++)
            new_row[3 * (ptrdiff_t)i + c] =
                (uint8_t)((pixel[c] * first + pixel[c + 3] * second + (1 << (precision - 1))) >> precision);
    }
}

/* The weighted sum of two rows of `count` bytes. */
static void across(
    const uint8_t *restrict row, const uint8_t *restrict next, int first, int second, int precision, ptrdiff_t count,
    uint8_t *restrict sum) {
    ptrdiff_t i = 0;
    int half = 1 << (precision - 1);
#if WITH_AVX2
    const __m256i halves = _mm256_set1_epi32(half), zero = _mm256_setzero_si256();
    const __m256i weights = _mm256_set1_epi32((int)((uint32_t)second << 16 | (uint32_t)first));
    for (; i + 32 <= count; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(row + i)), b = _mm256_loadu_si256((const __m256i *)(next + i));
        __m256i pairs[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)}, words[2];
        for (int k = 0; k < 2; k++) {
            __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi8(pairs[k], zero), weights);
            __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi8(pairs[k], zero), weights);
            low = _mm256_srai_epi32(_mm256_add_epi32(low, halves), precision);
            high = _mm256_srai_epi32(_mm256_add_epi32(high, halves), precision);
            words[k] = _mm256_packs_epi32(low, high);
        }
        _mm256_storeu_si256((__m256i *)(sum + i), _mm256_packus_epi16(words[0], words[1]));
    }
#endif
    for (; i < count; i++)
        sum[i] = (uint8_t)((row[i] * first + next[i] * second + half) >> precision);
}

void end_resizer(Resizer *resizer) {
    free(resizer->columns.first);
    free(resizer->columns.weights);
    free(resizer->rows.first);
    free(resizer->rows.weights);
    free(resizer->old[0]);
    free(resizer->old[1]);
}

int begin_resizer(Resizer *resizer, const int32_t *shape, int flip, const int32_t *new_shape, uint8_t *out) {
    *resizer = (Resizer){.height = shape[0], .width = shape[1], .new_height = new_shape[0], .new_width = new_shape[1]};
    resizer->out = out;
    for (int k = 0; k < 2; k++)
        resizer->old[k] = malloc(3 * (size_t)resizer->new_width + SLACK);
    if (!make_steps(&resizer->columns, resizer->width, resizer->new_width) || !resizer->old[0] || !resizer->old[1] ||
        !make_steps(&resizer->rows, resizer->height, resizer->new_height))
        return 0;
    if (flip)
        mirror(&resizer->columns, resizer->new_width);
    resizer->columns.copied &= !flip;
    return 1;
}

int32_t next_wanted(const Resizer *resizer, int32_t row) {
    if (resizer->next >= resizer->new_height)
        return resizer->height;
    int32_t first = resizer->rows.first[resizer->next];
    return row < first ? first : row;
}

void take_row(Resizer *resizer, int32_t row, const uint8_t *pixels) {
    ptrdiff_t bytes = 3 * (ptrdiff_t)resizer->new_width;
    uint8_t *own = resizer->old[row & 1];
    if (resizer->columns.copied)
        memcpy(own, pixels, (size_t)bytes);
    else
        along(&resizer->columns, pixels, resizer->new_width, own);
    for (; resizer->next < resizer->new_height; resizer->next++) {
        int32_t first = resizer->rows.first[resizer->next];
        const int16_t *weights = resizer->rows.weights[resizer->next];
        if (first + (weights[1] ? 1 : 0) > row)
            return;
        uint8_t *out = resizer->out + resizer->next * bytes;
        if (weights[0] == 1 << resizer->rows.precision)
            memcpy(out, resizer->old[first & 1], (size_t)bytes);
        else
            across(
                resizer->old[first & 1], resizer->old[(first + 1) & 1], weights[0], weights[1], resizer->rows.precision,
                bytes, out);
    }
}

/* A crop of `shape` (height, width) from `pixels` on, whose rows are `stride` bytes apart, to [*new_shape, 3]. */
EXPORTED int patchline_resize(
    const uint8_t *pixels, ptrdiff_t stride, const int32_t *shape, int flip, const int32_t *new_shape, uint8_t *out) {
    Resizer resizer;
    size_t bytes = 3 * (size_t)shape[1];
    uint8_t *row = calloc(1, bytes + SLACK);
    int result = NOT_MINE;
    if (begin_resizer(&resizer, shape, flip, new_shape, out) && row) {
        for (int32_t y = next_wanted(&resizer, 0); y < shape[0]; y = next_wanted(&resizer, y + 1)) {
            memcpy(row, pixels + y * stride, bytes);
            take_row(&resizer, y, row);
        }
        result = DONE;
    }
    free(row);
    end_resizer(&resizer);
    return result;
}
