/* Walks an exported schedule with a byte map of the arena; exit status 0 if every rule holds, else the rule's number. */
#include <stdio.h>
#include <stdlib.h>

#include "schedule.h"

static uint32_t owner[POET_ARENA_BYTES + 1];
static uint32_t at[POET_VALUES];
static uint32_t copies[POET_VALUES][POET_TIERS + 1];
static uint32_t used, peak, next_id = 1;

static void rule(int number, int holds) {
    if (!holds) exit(number);
}

static void take(uint32_t offset, uint32_t size) {
    uint32_t i;
    if (size == 0) return;
    rule(1, offset % POET_ALIGNMENT == 0 && offset + size <= POET_ARENA_BYTES);
    for (i = offset; i < offset + size; i++) {
        rule(2, owner[i] == 0);
        owner[i] = next_id;
    }
    next_id++;
    used += size;
    if (used > peak) peak = used;
}

static void give(uint32_t offset, uint32_t size) {
    uint32_t i;
    for (i = offset; i < offset + size; i++) {
        rule(3, owner[i] != 0 && owner[i] == owner[offset]);
    }
    for (i = offset; i < offset + size; i++) owner[i] = 0;
    used -= size;
}

static void compute(const poet_event *event) {
    uint32_t i, replaced[POET_VALUES];
    const poet_place *place = poet_places + event->first;
    for (i = 0; i < event->inputs; i++) rule(4, at[place[i].value] == place[i].offset);
    place += event->inputs;
    if (event->size) take(event->offset, event->size);
    for (i = 0; i < event->outputs; i++) {
        replaced[i] = at[place[i].value];
        take(place[i].offset, poet_value_bytes[place[i].value]);
        at[place[i].value] = place[i].offset;
    }
    for (i = 0; i < event->outputs; i++)
        if (replaced[i] != POET_NOWHERE) give(replaced[i], poet_value_bytes[place[i].value]);
    if (event->size) give(event->offset, event->size);
}

static void transfer(const poet_event *event, uint32_t *copy) {
    int inside = event->inputs + event->outputs > 0;
    if (event->kind == POET_PAGE_OUT) {
        rule(5, at[event->target] == event->offset);
        if (inside && *copy == POET_NOWHERE) take(poet_places[event->first].offset, (poet_value_bytes[event->target] + 3) / 4);
        *copy = inside ? poet_places[event->first].offset : 0;
    } else {
        rule(6, *copy != POET_NOWHERE && at[event->target] == POET_NOWHERE);
        if (inside) rule(7, *copy == poet_places[event->first].offset);
        take(event->offset, event->size);
        at[event->target] = event->offset;
    }
}

int main(void) {
    uint32_t e, v, t, done = 0;
    for (v = 0; v < POET_VALUES; v++) {
        at[v] = POET_NOWHERE;
        for (t = 0; t <= POET_TIERS; t++) copies[v][t] = POET_NOWHERE;
    }
    for (e = 0; e < POET_EVENTS; e++) {
        const poet_event *event = poet_schedule + e;
        uint32_t *copy = event->tier < 0 ? &done : &copies[event->target][event->tier];
        if (event->kind == POET_COMPUTE) {
            compute(event);
        } else if (event->kind == POET_FREE) {
            rule(8, at[event->target] == event->offset);
            give(event->offset, event->size);
            at[event->target] = POET_NOWHERE;
        } else if (event->kind == POET_DROP) {
            rule(9, *copy != POET_NOWHERE);
            if (event->offset != POET_NOWHERE) give(event->offset, event->size);
            *copy = POET_NOWHERE;
        } else {
            transfer(event, copy);
        }
    }
    printf("%lu\n", (unsigned long)peak);
    return 0;
}
