/* tigerfix/def.h - for the program that will be patched.
 *
 * tfix patches programs as they are: nothing has to be declared, linked or compiled in. This header exists so that
 * sources which include it go on compiling; it defines nothing that ends up in the program.
 */
#ifndef TIGERFIX_DEF_H
#define TIGERFIX_DEF_H

/* Lets a program say, where it cares, that it was written with patching in mind. */
#define TIGERFIX_DEF 1

#endif
