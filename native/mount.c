#include "mount.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "mount_private.h"
#include "relief.h"

static atomic_ullong all_nodes, all_open_files;

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
    ph_relief_remove(mount);
    ph_bound_take(&mount->node_bound, ph_bound_count(&mount->node_bound));
    ph_bound_take(&mount->open_file_bound, ph_bound_count(&mount->open_file_bound));
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
    mount->node_bound = (struct ph_bound){
        .most = setup->nodes,
        .most_of_all = setup->all_nodes,
        .alone = setup->alone,
        .count_of_all = &all_nodes,
    };
    mount->open_file_bound = (struct ph_bound){
        .most = setup->handles,
        .most_of_all = setup->all_handles,
        .alone = setup->alone,
        .count_of_all = &all_open_files,
    };
    mount->rules = setup->rules;
    mount->references = 1;
    mount->next_id = setup->root_id + 1;
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
    ph_relief_add(mount);
    return mount;
}

void ph_mount_retain(struct ph_mount *mount)
{
    atomic_fetch_add(&mount->references, 1);
}

bool ph_mount_retain_if_used(struct ph_mount *mount)
{
    unsigned references = atomic_load(&mount->references);

    while (references) {
        if (atomic_compare_exchange_weak(&mount->references, &references, references + 1))
            return true;
    }
    return false;
}

void ph_mount_release(struct ph_mount *mount)
{
    if (atomic_fetch_sub(&mount->references, 1) == 1)
        free_mount(mount);
}

uint64_t ph_mount_node_count(struct ph_mount *mount)
{
    return ph_bound_count(&mount->node_bound);
}

uint64_t ph_mount_node_limit(struct ph_mount *mount)
{
    return ph_bound_limit(&mount->node_bound);
}

uint64_t ph_mount_open_file_limit(struct ph_mount *mount)
{
    return ph_bound_limit(&mount->open_file_bound);
}

uint64_t ph_mount_open_file_count(struct ph_mount *mount)
{
    return ph_bound_count(&mount->open_file_bound);
}

uint64_t ph_mount_root_id(const struct ph_mount *mount)
{
    return mount->root->id;
}

bool ph_mount_may_switch(const struct ph_mount *mount)
{
    return mount->may_switch;
}

int ph_mount_claim(struct ph_mount *mount, int fd)
{
    int usable = ph_claim(&mount->descriptors, fd);

    if (fd >= 0 && usable < 0) {
        ph_relief_if_crowded(mount, fd);
        errno = EMFILE;
    }
    return usable;
}

int ph_mount_open_via_proc(struct ph_mount *mount, int fd, int flags)
{
    return ph_mount_claim(mount, ph_open_via_proc(&mount->descriptors, fd, flags));
}
