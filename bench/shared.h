/* The page that the victim and the measuring program share. */
#include <stdint.h>

struct shared {
    volatile uint64_t round;   /* the measuring program counts it up to begin anew */
    volatile uint64_t max_gap; /* longest time between two readings of the clock in this round, nanoseconds */
    volatile uint64_t ready;   /* threads that have begun */
    volatile uint64_t scratch; /* address of a function that nobody calls */
    volatile int answer;       /* what the replaced function returned last */
};
