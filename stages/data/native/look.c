/* Which JPEGs are for the native helper, and their size, by their headers alone.
 *
 * ITU T.81, annex B: the markers. Exif's orientation is TIFF's tag 0x0112.
 */

#include <string.h>

#include "native.h"

typedef struct {
    const uint8_t *at;
    size_t size;
    int big; /* byte order of the TIFF block */
} Block;

static uint32_t big16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

static uint32_t number16(const Block *block, size_t place) {
    const uint8_t *at = block->at + place;
    return block->big ? big16(at) : (uint32_t)at[1] << 8 | at[0];
}

static uint32_t number32(const Block *block, size_t place) {
    uint32_t first = number16(block, place), second = number16(block, place + 2);
    return block->big ? first << 16 | second : second << 16 | first;
}

/* Whether a directory's entry is whole, and neither turns the image nor gives Pillow anything to stumble over. */
static int entry_is_plain(const Block *block, size_t place) {
    static const uint8_t sizes[13] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8};
    uint32_t tag = number16(block, place), kind = number16(block, place + 2);
    uint64_t count = number32(block, place + 4);
    if (kind < 1 || kind > 12)
        return 0;
    uint64_t bytes = count * sizes[kind];
    if (bytes > 4 && number32(block, place + 8) + bytes > block->size)
        return 0;
    if (tag == 0x0112) /* orientation: upright */
        return kind == 3 && count == 1 && number16(block, place + 8) == 1;
    if (tag == 0x011A) /* resolution, a fraction */
        return kind == 5 && count == 1;
    if (tag == 0x0128) /* its unit */
        return kind == 3 && count == 1;
    return 1;
}

static int exif_is_plain(const uint8_t *at, size_t size) {
    Block block = {at, size, 0};
    if (size < 14 || (memcmp(at, "II*\0", 4) && memcmp(at, "MM\0*", 4)))
        return 0;
    block.big = at[0] == 'M';
    size_t place = number32(&block, 4);
    if (place < 8 || place > size - 2)
        return 0;
    size_t entries = number16(&block, place);
    if (entries > (size - place - 2) / 12)
        return 0;
    for (size_t entry = 0; entry < entries; entry++)
        if (!entry_is_plain(&block, place + 2 + 12 * entry))
            return 0;
    return 1;
}

/* Photoshop's resources: each has its name, its size and its content within the segment. */
static int resources_are_plain(const uint8_t *at, size_t size) {
    size_t place = 14;
    while (place + 4 <= size && !memcmp(at + place, "8BIM", 4)) {
        if (place + 7 > size)
            return 0;
        place += 6;
        place += 1 + (size_t)at[place];
        place += place & 1;
        if (place + 4 > size)
            return 0;
        place += 4 + ((size_t)big16(at + place) << 16 | big16(at + place + 2));
        place += place & 1;
    }
    return 1;
}

static int begins(const uint8_t *at, size_t size, const char *text, size_t length) {
    return size >= length && !memcmp(at, text, length);
}

static int contains(const uint8_t *at, size_t size, const char *text) {
    size_t length = strlen(text);
    for (const uint8_t *end = at + size; (size_t)(end - at) >= length; at++) {
        at = memchr(at, text[0], (size_t)(end - at) - length + 1);
        if (!at)
            return 0;
        if (!memcmp(at, text, length))
            return 1;
    }
    return 0;
}

/* Whether an application's segment says nothing that changes what is decoded. */
static int application_is_plain(int marker, const uint8_t *at, size_t size, int *exif) {
    switch (marker) {
    case 0xE0:
        return !begins(at, size, "JFIF", 4) || size >= 14;
    case 0xE1:
        if (begins(at, size, "Exif\0\0", 6))
            return !(*exif)++ && exif_is_plain(at + 6, size - 6);
        /* XMP may turn an image as well. */
        return !contains(at, size, "tiff:Orientation");
    case 0xE2: /* of several images, of which Pillow says which one is first */
        return !begins(at, size, "MPF", 3);
    case 0xED:
        return !begins(at, size, "Photoshop 3.0", 14) || resources_are_plain(at, size);
    case 0xEE:
        return !begins(at, size, "Adobe", 5) || size >= 12;
    }
    return 1;
}

typedef struct {
    int32_t height, width;
    int components, progressive;
} Frame;

static int frame_is_plain(int marker, const uint8_t *at, size_t size, Frame *frame) {
    if (size < 6 || frame->components || at[0] != 8)
        return 0;
    frame->height = (int32_t)big16(at + 1);
    frame->width = (int32_t)big16(at + 3);
    frame->components = at[5];
    frame->progressive = marker == 0xC2;
    if (!frame->height || !frame->width || size != 6 + 3 * (size_t)frame->components)
        return 0;
    if (frame->components == 1)
        return at[7] == 0x11;
    if (frame->components != 3 || at[10] != 0x11 || at[13] != 0x11)
        return 0;
    return at[7] == 0x11 || at[7] == 0x21 || at[7] == 0x12 || at[7] == 0x22 || at[7] == 0x41;
}

/* Whether the compressed pixels go on, without any marker but those of restarts, up to the end of the image.
 *
 * Then a decoder of a single scan finds an end whatever lies before it, and Pillow never refuses it: so the rows below
 * a crop need not be decoded to know that the image can be.
 */
static int scan_has_its_end(const uint8_t *at, const uint8_t *end) {
    while (end - at >= 2) {
        at = memchr(at, 0xFF, (size_t)(end - at) - 1);
        if (!at)
            return 0;
        if (at[1] == 0xD9)
            return 1;
        if (at[1] && (at[1] < 0xD0 || at[1] > 0xD7))
            return 0;
        at += 2;
    }
    return 0;
}

/* Height and width of a JPEG that is for us, by its header; NOT_MINE for all other bytes. */
EXPORTED int patchline_look(const uint8_t *data, size_t size, int32_t *height_width) {
    Frame frame = {0, 0, 0, 0};
    int exif = 0;
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8)
        return NOT_MINE;
    const uint8_t *at = data + 2, *end = data + size;
    while (end - at >= 4) {
        if (at[0] != 0xFF)
            return NOT_MINE;
        int marker = at[1];
        size_t length = big16(at + 2);
        if (length < 2 || length > (size_t)(end - at) - 2)
            return NOT_MINE;
        const uint8_t *content = at + 4;
        size_t count = length - 2;
        at += 2 + length;
        if (marker == 0xDA) {
            if (!frame.components || count < 1)
                return NOT_MINE;
            int single = !frame.progressive && content[0] == frame.components;
            if (single && !scan_has_its_end(at, end))
                return NOT_MINE;
            height_width[0] = frame.height;
            height_width[1] = frame.width;
            return DONE;
        }
        int plain = 0;
        if (marker >= 0xC0 && marker <= 0xC2)
            plain = frame_is_plain(marker, content, count, &frame);
        else if (marker >= 0xE0 && marker <= 0xEF)
            plain = application_is_plain(marker, content, count, &exif);
        else /* Huffman and quantisation tables, the restart interval, comments */
            plain = marker == 0xC4 || marker == 0xDB || marker == 0xDD || marker == 0xFE;
        if (!plain)
            return NOT_MINE;
    }
    return NOT_MINE;
}
