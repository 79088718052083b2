/* tigerfix/dev.h - for the source of a patch. C and C++.
 *
 *     #include <tigerfix/dev.h>
 *
 *     PATCH_VERSION("1.0");
 *
 *     extern int requests;              // the program's own variable: its value is kept
 *
 *     FIXFUN(handle)                    // replaces the program's handle()
 *     int handle(int fd) { requests++; ... }
 *
 *     TFIX_REPLACE(parse, parse_v2)     // replaces the program's parse() by this function of another name
 *     int parse_v2(const char *s) { ... }
 *
 *     TFIX_REPLACE_IN(server.c, reset, new_reset)   // that reset() which comes from server.c, where several exist
 *     void new_reset(void) { ... }
 *
 * Compile it to an object (gcc -c -fPIC fix.c) and give that to `tfix gen`. Functions without a mark are the patch's own,
 * even where the program has one of the same name. In C++ give the names as the linker sees them
 * (FIXFUN(_Z5scalei)), or wrap the function in extern "C".
 *
 * A mark is a string in section .tfix.marks, "name" or "new=old" or "new=file.c:old", each with its terminating zero;
 * the version is a string in section .tfix.version. `tfix gen` reads both; neither becomes part of the patch image.
 */
#ifndef TIGERFIX_DEV_H
#define TIGERFIX_DEV_H

#define TFIX_PASTE_(a, b) a##b
#define TFIX_PASTE(a, b) TFIX_PASTE_(a, b)
/* Names are expanded before they become text: where a macro renames the function, the mark follows. */
#define TFIX_TEXT_(name) #name
#define TFIX_TEXT(name) TFIX_TEXT_(name)

/* aligned(1) keeps the strings of one section packed, so that they read as one list. */
#define TFIX_NOTE(place, text) \
    static const char TFIX_PASTE(tfix_note_, __COUNTER__)[] \
        __attribute__((used, section(place), aligned(1))) = text

/* A replacement has to exist as a function of its own, whatever the optimiser thinks of its callers. It keeps the
 * linkage that its definition gives it: a patch may declare it before (`int f(int);`), several objects of one patch may
 * call it, and where it is global its address stays the address of the function that it replaces. */
#define TFIX_BODY __attribute__((noinline, used))

#define PATCH_VERSION(version) TFIX_NOTE(".tfix.version", version)

#define FIXFUN(name) \
    TFIX_NOTE(".tfix.marks", TFIX_TEXT(name)); \
    TFIX_BODY

#define TFIX_REPLACE(old_name, new_name) \
    TFIX_NOTE(".tfix.marks", TFIX_TEXT(new_name) "=" TFIX_TEXT(old_name)); \
    TFIX_BODY

#define TFIX_REPLACE_IN(file, old_name, new_name) \
    TFIX_NOTE(".tfix.marks", TFIX_TEXT(new_name) "=" #file ":" TFIX_TEXT(old_name)); \
    TFIX_BODY

#endif
