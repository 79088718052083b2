/* A small shop that never closes. Delivery is meant to be free from 1000 up; somebody lost a zero, so that every order
 * in here goes out without it.
 *
 * Nothing in this program knows about patching.
 */
#include <stdio.h>
#include <unistd.h>

struct order {
    const char *customer;
    int goods;   /* price of the goods */
    int regular; /* gets ten per cent off */
};

int delivery = 40;
static int served; /* what a restart would lose */

__attribute__((noinline)) int total(const struct order *order) {
    int sum = order->goods;
    if (order->regular)
        sum -= order->goods / 10;
    if (sum < 100)
        sum += delivery;
    return sum;
}

int main(void) {
    static const struct order orders[] = {{"Ada", 200, 1}, {"Bert", 180, 0}};
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        const struct order *order = &orders[served++ % 2];
        printf("order %d: %s, total %d\n", served, order->customer, total(order));
        usleep(300000);
    }
}
