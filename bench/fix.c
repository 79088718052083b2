/* The patch: uses the program's data, a libc function, a string and a variable of its own. */
#include <stdio.h>

extern int base;

int answer(void)
{
    static unsigned calls;
    if (++calls == 0)
        puts("the counter has wrapped");
    return base + 1;
}
