#include "mount.h"

#include <stdlib.h>
#include <unistd.h>

#include "mount_private.h"

/* `root_fd` is taken over. False: the shared directory cannot be read, or there is no memory. */
PH_ALONE static bool add_root(struct ph_mount *mount, uint64_t root_id, int root_fd)
{
    struct ph_volume *volume = NULL;
    struct ph_status status;

    if (!ph_status_of(root_fd, &status))
        volume = ph_volume_find_or_add(&mount->volumes, &status);
    if (volume)
        volume->ino_mask = mount->rules.ino_mask;
    if (volume)
        mount->root = ph_node_new(root_id, volume, &status, &mount->rules);
    if (!mount->root) {
        close(root_fd);
        return false;
    }
    mount->root->fd = root_fd; /* it is not among the resident nodes, so it is never evicted */
    ph_volume_trusts_handles(volume, &mount->descriptors, root_fd); /* with a file that stays */
    ph_node_index_add(&mount->index, mount->root);
    return true;
}

PH_ALONE static void free_mount(struct ph_mount *mount)
{
    ph_open_file_table_free(&mount->open_files);
    ph_node_index_free(&mount->index);
    free(mount->resident.nodes);
    while (mount->volumes) {
        struct ph_volume *volume = mount->volumes;

        mount->volumes = volume->next;
        ph_volume_free(volume);
    }
    ph_descriptors_free(&mount->descriptors);
    ph_mutex_destroy(&mount->mutex);
    free(mount);
}

PH_ALONE struct ph_mount *ph_mount_new(const struct ph_mount_setup *setup)
{
    struct ph_mount *mount = calloc(1, sizeof(*mount));

    if (!mount || !ph_descriptors_init(&mount->descriptors, setup->descriptor_limit)) {
        close(setup->root_fd);
        free(mount);
        return NULL;
    }
    ph_mutex_init(&mount->mutex);
    mount->rules = setup->rules;
    mount->references = 1;
    mount->next_id = setup->root_id + 1;
    mount->node_limit = setup->nodes;
    mount->open_file_limit = setup->handles;
    mount->resident.most = (uint32_t)setup->descriptors;
    mount->may_switch = setup->may_switch;
    if (!ph_node_index_init(&mount->index) || !ph_open_file_table_init(&mount->open_files)) {
        close(setup->root_fd);
        free_mount(mount);
        return NULL;
    }
    if (!add_root(mount, setup->root_id, setup->root_fd)) {
        free_mount(mount);
        return NULL;
    }
    return mount;
}

void ph_mount_retain(struct ph_mount *mount)
{
    atomic_fetch_add(&mount->references, 1);
}

void ph_mount_release(struct ph_mount *mount)
{
    if (atomic_fetch_sub(&mount->references, 1) == 1)
        free_mount(mount);
}

uint64_t ph_mount_node_count(struct ph_mount *mount)
{
    return atomic_load_explicit(&mount->node_count, memory_order_relaxed);
}

uint64_t ph_mount_node_limit(const struct ph_mount *mount)
{
    return mount->node_limit;
}

uint64_t ph_mount_open_file_count(struct ph_mount *mount)
{
    return atomic_load_explicit(&mount->open_file_count, memory_order_relaxed);
}

uint64_t ph_mount_root_id(const struct ph_mount *mount)
{
    return mount->root->id;
}

bool ph_mount_may_switch(const struct ph_mount *mount)
{
    return mount->may_switch;
}

int ph_mount_claim(const struct ph_mount *mount, int fd)
{
    return ph_claim(&mount->descriptors, fd);
}

int ph_mount_open_via_proc(const struct ph_mount *mount, int fd, int flags)
{
    return ph_claim(&mount->descriptors, ph_open_via_proc(&mount->descriptors, fd, flags));
}
