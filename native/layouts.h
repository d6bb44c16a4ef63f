/*
 * The structures, constants and functions that Python declares too (fastpath/declarations.py), as
 * the compiler laid them out. Python compares the two before it calls anything else.
 *
 * A structure, field, constant or function that both sides know is listed here once.
 */
#ifndef PORTHOLE_LAYOUTS_H
#define PORTHOLE_LAYOUTS_H

#include <stdint.h>

/* A field, or with an empty field name the whole structure. */
struct ph_layout {
    const char *name; /* of the structure */
    const char *field;
    uint64_t offset;
    uint64_t size_bytes;
};

struct ph_constant {
    const char *name;
    int64_t value;
};

struct ph_function {
    const char *name;
    const char *signature; /* "result(argument, argument)", in types of C */
};

/* Each returns a table that ends with a row without a name. */
const struct ph_layout *ph_layouts(void);
const struct ph_constant *ph_constants(void);
const struct ph_function *ph_functions(void);

#endif
