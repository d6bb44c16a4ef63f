#include "mount_private.h"

#include <stdlib.h>

enum { FIRST_BUCKETS = 64 };

static uint64_t key_hash(const struct ph_volume *volume, uint64_t ino)
{
    uint64_t mixed = (ino + (uintptr_t)volume * 0x9e3779b97f4a7c15u) * 0xff51afd7ed558ccdu;

    return mixed ^ mixed >> 32;
}

static struct ph_node **id_bucket(const struct ph_node_index *index, uint64_t id)
{
    return &index->by_id[id & (index->buckets - 1)];
}

static struct ph_node **key_bucket(const struct ph_node_index *index,
                                   const struct ph_volume *volume, uint64_t ino)
{
    return &index->by_key[key_hash(volume, ino) & (index->buckets - 1)];
}

bool ph_node_index_init(struct ph_node_index *index)
{
    index->buckets = FIRST_BUCKETS;
    index->by_id = calloc(index->buckets, sizeof(struct ph_node *));
    index->by_key = calloc(index->buckets, sizeof(struct ph_node *));
    return index->by_id && index->by_key;
}

void ph_node_index_free(struct ph_node_index *index)
{
    for (uint64_t i = 0; index->by_id && i < index->buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = index->by_id[i]; node; node = next) {
            next = node->next_by_id;
            ph_node_free(node);
        }
    }
    free(index->by_id);
    free(index->by_key);
}

struct ph_node *ph_node_index_find(const struct ph_node_index *index, uint64_t id)
{
    struct ph_node *node = *id_bucket(index, id);

    while (node && node->id != id)
        node = node->next_by_id;
    return node;
}

struct ph_node *ph_node_index_find_key(const struct ph_node_index *index,
                                       const struct ph_volume *volume, uint64_t ino)
{
    struct ph_node *node = *key_bucket(index, volume, ino);

    while (node && (node->volume != volume || node->ino != ino))
        node = node->next_by_key;
    return node;
}

static void link_id(struct ph_node_index *index, struct ph_node *node)
{
    struct ph_node **bucket = id_bucket(index, node->id);

    node->next_by_id = *bucket;
    *bucket = node;
}

static void link_key(struct ph_node_index *index, struct ph_node *node)
{
    struct ph_node **bucket = key_bucket(index, node->volume, node->ino);

    node->next_by_key = *bucket;
    *bucket = node;
}

void ph_node_index_add(struct ph_node_index *index, struct ph_node *node)
{
    link_id(index, node);
    link_key(index, node);
    node->known = node->keyed = true;
}

void ph_node_index_remove(struct ph_node_index *index, struct ph_node *node)
{
    struct ph_node **at = id_bucket(index, node->id);

    while (*at != node)
        at = &(*at)->next_by_id;
    *at = node->next_by_id;
    node->known = false;
    ph_node_index_remove_key(index, node);
}

void ph_node_index_remove_key(struct ph_node_index *index, struct ph_node *node)
{
    struct ph_node **at = key_bucket(index, node->volume, node->ino);

    if (!node->keyed)
        return;
    while (*at != node)
        at = &(*at)->next_by_key;
    *at = node->next_by_key;
    node->keyed = false;
}

void ph_node_index_grow(struct ph_node_index *index)
{
    struct ph_node_index old = *index;
    struct ph_node **by_id = calloc(old.buckets * 2, sizeof(struct ph_node *));
    struct ph_node **by_key = calloc(old.buckets * 2, sizeof(struct ph_node *));

    if (!by_id || !by_key) {
        free(by_id);
        free(by_key);
        return;
    }
    *index = (struct ph_node_index){by_id, by_key, old.buckets * 2};
    for (uint64_t i = 0; i < old.buckets; i++) {
        struct ph_node *next;

        for (struct ph_node *node = old.by_id[i]; node; node = next) {
            next = node->next_by_id;
            link_id(index, node);
        }
        for (struct ph_node *node = old.by_key[i]; node; node = next) {
            next = node->next_by_key;
            link_key(index, node);
        }
    }
    free(old.by_id);
    free(old.by_key);
}
