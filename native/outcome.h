/*
 * Why a native loop has returned to Python.
 */
#ifndef PORTHOLE_OUTCOME_H
#define PORTHOLE_OUTCOME_H

enum ph_outcome {
    PH_OUTCOME_PYTHON = 1, /* Python takes the next chain, or reports that the ring is broken */
    PH_OUTCOME_STOPPED = 2,
    PH_OUTCOME_WOKEN = 3,  /* the further descriptor is readable */
    PH_OUTCOME_FAILED = 4, /* the device's own descriptor is of no use any more */
    PH_OUTCOME_BOUND = 5,  /* a frame was dropped that needed more chains than a queue may hold */
};

#endif
