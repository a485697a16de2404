/* Calls functions of an object file with what comes by standard input, and writes the memory of each call back.
 *
 * A call is five parts, in int64 but for the last: the index of a function, the bytes of memory, the number of
 * addresses, their places in memory, and the memory. It begins with the function's arguments. An address is an offset
 * into the memory before the call and after it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

extern void run(int64_t function, int64_t arguments);

static void move(char *memory, const int64_t *places, int64_t count, int64_t distance) {
    for (int64_t k = 0; k < count; k++) *(int64_t *)(memory + places[k]) += distance;
}

static void require(int right, const char *what) {
    if (right) return;
    fprintf(stderr, "call_driver: expected %s\n", what);
    exit(2);
}

int main(void) {
    int64_t head[3];
    while (fread(head, sizeof(int64_t), 3, stdin) == 3) {
        int64_t bytes = head[1], count = head[2];
        int64_t *places = malloc((count + 1) * sizeof(int64_t));
        char *memory = aligned_alloc(64, bytes);
        require(places && memory, "memory");
        require(fread(places, sizeof(int64_t), count, stdin) == (size_t)count, "the places of addresses");
        require(fread(memory, 1, bytes, stdin) == (size_t)bytes, "the memory of a call");
        move(memory, places, count, (int64_t)memory);
        run(head[0], (int64_t)memory);
        move(memory, places, count, -(int64_t)memory);
        require(fwrite(memory, 1, bytes, stdout) == (size_t)bytes, "to write the memory");
        free(memory);
        free(places);
    }
    return 0;
}
