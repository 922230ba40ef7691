/* The rows and columns of a JPEG that a crop needs, resized as they are decoded. */

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>

#include "native.h"

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf place;
} Failure;

static void fail(j_common_ptr decoder) { longjmp(((Failure *)decoder->err)->place, 1); }

/* Warnings, below 0, are of damage; the others are traces. */
static void message(j_common_ptr decoder, int level) {
    if (level < 0)
        fail(decoder);
}

typedef struct {
    struct jpeg_decompress_struct decoder;
    Failure failure;
    Resizer resizer;
    uint8_t *row;
    int result;
} Work;

/* Whether libjpeg would smooth over what a progressive image leaves out, which its versions do in different ways. */
static int is_incomplete(const struct jpeg_decompress_struct *decoder) {
    if (!decoder->progressive_mode)
        return 0;
    for (int c = 0; c < decoder->num_components; c++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (!decoder->coef_bits || decoder->coef_bits[c][k])
                return 1;
    return 0;
}

static int is_within(const int32_t *box, const struct jpeg_decompress_struct *decoder) {
    return box[0] >= 0 && box[1] >= 0 && box[2] > 0 && box[3] > 0 &&
           (int64_t)box[0] + box[2] <= decoder->output_height && (int64_t)box[1] + box[3] <= decoder->output_width;
}

static void decode(Work *work, const int32_t *box) {
    struct jpeg_decompress_struct *decoder = &work->decoder;
    JDIMENSION top = (JDIMENSION)box[0], left = (JDIMENSION)box[1];
    /* Smooth upsampling of colours looks at the neighbours. */
    JDIMENSION start = left < 4 ? 0 : left - 4, stop = left + (JDIMENSION)box[3] + 4;
    if (stop > decoder->output_width)
        stop = decoder->output_width;
    JDIMENSION width = stop - start;
    jpeg_crop_scanline(decoder, &start, &width);
    work->row = calloc(1, 3 * (size_t)width + SLACK);
    if (!work->row)
        fail((j_common_ptr)decoder);
    JSAMPROW row = work->row;
    /* From the first row of the image alone: after skipping from between, libjpeg may take the wrong neighbours of a row
     * for smooth upsampling, so rows that are not wanted are read as well. */
    if (top && jpeg_skip_scanlines(decoder, top) != top)
        fail((j_common_ptr)decoder);
    for (int32_t y = 0; y < box[2]; y++) {
        if (jpeg_read_scanlines(decoder, &row, 1) != 1)
            fail((j_common_ptr)decoder);
        if (y == next_wanted(&work->resizer, y))
            take_row(&work->resizer, y, work->row + 3 * (left - start));
    }
}

/* A box (top, left, height, width) of a JPEG that `patchline_look` has found to be for us, to [*new_shape, 3].
 *
 * NOT_MINE where anything is wrong with what is decoded; `out` may have been written to.
 */
EXPORTED int patchline_crop(
    const uint8_t *data, size_t size, const int32_t *box, int flip, const int32_t *new_shape, uint8_t *out) {
    Work *work = calloc(1, sizeof *work);
    if (!work)
        return NOT_MINE;
    work->result = NOT_MINE;
    work->decoder.err = jpeg_std_error(&work->failure.base);
    work->failure.base.error_exit = fail;
    work->failure.base.emit_message = message;
    if (begin_resizer(&work->resizer, box + 2, flip, new_shape, out) && !setjmp(work->failure.place)) {
        jpeg_create_decompress(&work->decoder);
        jpeg_mem_src(&work->decoder, (unsigned char *)data, (unsigned long)size);
        jpeg_read_header(&work->decoder, TRUE);
        work->decoder.out_color_space = JCS_RGB;
        jpeg_start_decompress(&work->decoder);
        if (is_within(box, &work->decoder) && !is_incomplete(&work->decoder)) {
            decode(work, box);
            work->result = work->resizer.next == work->resizer.new_height ? DONE : NOT_MINE;
        }
    }
    jpeg_destroy_decompress(&work->decoder);
    free(work->row);
    end_resizer(&work->resizer);
    int result = work->result;
    free(work);
    return result;
}
