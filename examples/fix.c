/* The corrected total(), and nothing else. `delivery` is the server's own variable. */
#include <tigerfix/dev.h>

struct order {
    const char *customer;
    int goods;
    int regular;
};

extern int delivery;

PATCH_VERSION("1.0");

FIXFUN(total)
int total(const struct order *order) {
    int sum = order->goods;
    if (order->regular)
        sum -= order->goods / 10;
    if (sum < 1000)
        sum += delivery;
    return sum;
}
