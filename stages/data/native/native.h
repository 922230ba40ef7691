/* What the parts of the native helper share.
 *
 * Every function gives the bytes of the plain way, which is Pillow's decoder and torch's bilinear resizing of 8 bits,
 * or says that the image is not for it: whatever is unusual or damaged is left to the plain way to judge.
 * Nothing is kept between calls, so any number of threads may call at once.
 */

#ifndef PATCHLINE_NATIVE_H
#define PATCHLINE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

enum { DONE = 0, NOT_MINE = 1 };

/* Bytes that rows have behind their end, since whole vectors are read and written. */
enum { SLACK = 64 };

/* Where new pixels lie: the first of two old ones, and the weights of both in units of 2^-precision. */
typedef struct {
    int32_t *first;
    int16_t (*weights)[8]; /* the pair, four times */
    int precision, copied;
} Steps;

/* Takes the rows of a crop from the top down, and writes those of the new image as soon as they can be. */
typedef struct {
    Steps columns, rows;
    int32_t height, width, new_height, new_width;
    uint8_t *old[2]; /* the last two rows, at their new width */
    int32_t next;    /* new row to be written */
    uint8_t *out;
} Resizer;

/* For a crop of `shape` (height, width); 0 where memory is short. To be ended either way. */
int begin_resizer(Resizer *resizer, const int32_t *shape, int flip, const int32_t *new_shape, uint8_t *out);
void end_resizer(Resizer *resizer);

/* The next row of the crop, from this one on, that has a part in a new one; `height` where there is none. */
int32_t next_wanted(const Resizer *resizer, int32_t row);

/* The row of the crop with this number, [width, 3] with SLACK behind its end. All that are wanted have to be given. */
void take_row(Resizer *resizer, int32_t row, const uint8_t *pixels);

#endif
