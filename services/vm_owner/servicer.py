"""The gRPC edge of the VM owner for its users: VmOwner.

convert.py converts its messages; init_channel.py is the edge for one guest.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from porthole.handshake.v1 import guest_capabilities_pb2
from porthole.vmowner.v1 import vm_owner_pb2, vm_owner_pb2_grpc

from services.rpc.convert import (
    mapping_from_proto,
    mapping_to_proto,
    port_key_from_proto,
    rate_limits_from_proto,
    rate_limits_to_proto,
)
from services.rpc.server import Servicer
from services.rpc.version import service_version
from services.vm_owner.assembly import VmSpec
from services.vm_owner.convert import (
    device_spec_from_proto,
    device_to_proto,
    machine_spec_from_proto,
    network_request_from_proto,
    network_to_proto,
    report_in,
    share_spec_from_proto,
    share_to_proto,
    status_of,
    vm_basics_to_proto,
    vm_kind_from_proto,
    vm_to_proto,
    watch_item_to_proto,
)
from services.vm_owner.pages import (
    PAGE_LIMIT_BYTES,
    is_full_view,
    number_of,
    page_size,
    token_of,
)
from services.vm_owner.watch_items import DeviceChange
from services.vm_owner.wslconfig import MAX_NAME_LENGTH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.vm_owner.manifest import Manifest
    from services.vm_owner.owner import VmOwner
    from services.vm_owner.vm import Vm

VM_OWNER: Final = "porthole.vmowner.v1.VmOwner"


class VmOwnerServicer(vm_owner_pb2_grpc.VmOwnerServicer):
    """Serves porthole.vmowner.v1.VmOwner."""

    def __init__(self, owner: VmOwner, manifest: Manifest) -> None:
        self._owner = owner
        self._manifest = manifest

    async def GetVersion(  # noqa: N802, D102
        self, request: vm_owner_pb2.GetVersionRequest, context: object
    ) -> vm_owner_pb2.GetVersionResponse:
        return vm_owner_pb2.GetVersionResponse(
            version=service_version(VM_OWNER),
            first_kernel_with_pool=self._manifest.first_kernel_with_pool,
            first_device_host_with_token=self._manifest.first_device_host_with_token,
            bundled_kernel=self._manifest.bundled_kernel,
        )

    async def CreateVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.CreateVmRequest, context: object
    ) -> vm_owner_pb2.CreateVmResponse:
        spec = VmSpec(
            kind=vm_kind_from_proto(request.kind),
            ram_bytes=request.ram_bytes,
            wslconfig=request.wslconfig,
            # The owner keeps the spec as long as the VM is listed.
            wslconfig_name=request.wslconfig_name[:MAX_NAME_LENGTH],
            machine=machine_spec_from_proto(request),
            shares=tuple(share_spec_from_proto(share) for share in request.shares),
            vm_id=request.vm_id,
        )
        vm = await self._owner.create(spec)
        return vm_owner_pb2.CreateVmResponse(vm=await self._describe(vm))

    async def GetVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.GetVmRequest, context: object
    ) -> vm_owner_pb2.GetVmResponse:
        vm = self._owner.find(request.vm_id)
        return vm_owner_pb2.GetVmResponse(vm=await self._describe(vm))

    async def ListVms(  # noqa: N802, D102
        self, request: vm_owner_pb2.ListVmsRequest, context: object
    ) -> vm_owner_pb2.ListVmsResponse:
        describe = self._describe if is_full_view(request.view) else self._describe_basics
        size = page_size(request.page_size)
        rest = list(self._owner.after(number_of(request.page_token)))
        described = await asyncio.gather(*(describe(vm) for _, vm in rest[:size]))
        page = vm_owner_pb2.ListVmsResponse()
        page_bytes = 0
        for vm in described:
            page_bytes += vm.ByteSize()
            if page.vms and page_bytes > PAGE_LIMIT_BYTES:
                break
            page.vms.append(vm)
        if len(page.vms) < len(rest):
            page.next_page_token = token_of(rest[len(page.vms) - 1][0])
        return page

    async def WatchVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.WatchVmRequest, context: object
    ) -> AsyncIterator[vm_owner_pb2.WatchVmResponse]:
        vm = self._owner.find(request.vm_id)
        # Subscribed before the device hosts are asked, so that no change is lost meanwhile.
        with vm.record.watch(request.after_sequence) as stream:
            began = stream.sequence
            for item in stream.take_snapshot():
                yield watch_item_to_proto(item, began)
            if not stream.resumed:
                for change in await self._present_devices(vm):
                    yield watch_item_to_proto(change, began)
            end = vm_owner_pb2.SnapshotEnd(resumed=stream.resumed)
            yield vm_owner_pb2.WatchVmResponse(snapshot_end=end, sequence=began)
            async for item in stream:
                yield watch_item_to_proto(item, stream.sequence)

    async def GetGuestCapabilities(  # noqa: N802, D102
        self, request: vm_owner_pb2.GetGuestCapabilitiesRequest, context: object
    ) -> vm_owner_pb2.GetGuestCapabilitiesResponse:
        report = await self._owner.read_capabilities(request.vm_id)
        capabilities = guest_capabilities_pb2.GuestCapabilities.FromString(report.message)
        return vm_owner_pb2.GetGuestCapabilitiesResponse(capabilities=capabilities)

    async def ApplyGuestCapabilities(  # noqa: N802, D102
        self, request: vm_owner_pb2.ApplyGuestCapabilitiesRequest, context: object
    ) -> vm_owner_pb2.ApplyGuestCapabilitiesResponse:
        applied = await self._owner.apply_capabilities(request.vm_id, report_in(request))
        return vm_owner_pb2.ApplyGuestCapabilitiesResponse(
            already_applied=applied.already_applied,
            swiotlb_option=applied.token,
            capabilities=guest_capabilities_pb2.GuestCapabilities.FromString(
                applied.in_force.message
            ),
        )

    async def AddShare(  # noqa: N802, D102
        self, request: vm_owner_pb2.AddShareRequest, context: object
    ) -> vm_owner_pb2.AddShareResponse:
        share, existed = await self._owner.add_share(
            request.vm_id, share_spec_from_proto(request.share)
        )
        return vm_owner_pb2.AddShareResponse(share=share_to_proto(share), already_existed=existed)

    async def RemoveShare(  # noqa: N802, D102
        self, request: vm_owner_pb2.RemoveShareRequest, context: object
    ) -> vm_owner_pb2.RemoveShareResponse:
        await self._owner.remove_share(request.vm_id, request.share_id)
        return vm_owner_pb2.RemoveShareResponse()

    async def AddGuestDevice(  # noqa: N802, D102
        self, request: vm_owner_pb2.AddGuestDeviceRequest, context: object
    ) -> vm_owner_pb2.AddGuestDeviceResponse:
        self._owner.find(request.vm_id)
        spec = await device_spec_from_proto(request, self._owner.host_paths)
        device = await self._owner.add_device(request.vm_id, spec, request.instance_id)
        return vm_owner_pb2.AddGuestDeviceResponse(device=device_to_proto(device, {}))

    async def RemoveGuestDevice(  # noqa: N802, D102
        self, request: vm_owner_pb2.RemoveGuestDeviceRequest, context: object
    ) -> vm_owner_pb2.RemoveGuestDeviceResponse:
        await self._owner.remove_device(request.vm_id, request.instance_id)
        return vm_owner_pb2.RemoveGuestDeviceResponse()

    async def ConfigureNetworking(  # noqa: N802, D102
        self, request: vm_owner_pb2.ConfigureNetworkingRequest, context: object
    ) -> vm_owner_pb2.ConfigureNetworkingResponse:
        asked = network_request_from_proto(request)
        return network_to_proto(await self._owner.configure_networking(request.vm_id, asked))

    async def MapPort(  # noqa: N802, D102
        self, request: vm_owner_pb2.MapPortRequest, context: object
    ) -> vm_owner_pb2.MapPortResponse:
        wanted = mapping_from_proto(request.mapping)
        mapping = await self._owner.map_port(request.vm_id, wanted)
        return vm_owner_pb2.MapPortResponse(mapping=mapping_to_proto(mapping))

    async def UnmapPort(  # noqa: N802, D102
        self, request: vm_owner_pb2.UnmapPortRequest, context: object
    ) -> vm_owner_pb2.UnmapPortResponse:
        await self._owner.unmap_port(request.vm_id, port_key_from_proto(request.key))
        return vm_owner_pb2.UnmapPortResponse()

    async def ListPorts(  # noqa: N802, D102
        self, request: vm_owner_pb2.ListPortsRequest, context: object
    ) -> vm_owner_pb2.ListPortsResponse:
        mappings = await self._owner.list_ports(request.vm_id)
        return vm_owner_pb2.ListPortsResponse(mappings=map(mapping_to_proto, mappings))

    async def SetRateLimit(  # noqa: N802, D102
        self, request: vm_owner_pb2.SetRateLimitRequest, context: object
    ) -> vm_owner_pb2.SetRateLimitResponse:
        limits = await self._owner.set_rate_limits(
            request.vm_id, request.instance_id, rate_limits_from_proto(request)
        )
        return vm_owner_pb2.SetRateLimitResponse(**rate_limits_to_proto(limits))

    async def TerminateVm(  # noqa: N802, D102
        self, request: vm_owner_pb2.TerminateVmRequest, context: object
    ) -> vm_owner_pb2.TerminateVmResponse:
        await self._owner.terminate(request.vm_id)
        return vm_owner_pb2.TerminateVmResponse()

    async def _present_devices(self, vm: Vm) -> list[DeviceChange]:
        statuses = await self._owner.statuses(vm)
        return [
            DeviceChange(
                device.instance_id,
                device.spec.tag,
                status_of(device, statuses).state,
                "present when the watch began",
            )
            for device in vm.devices.all()
        ]

    async def _describe_basics(self, vm: Vm) -> vm_owner_pb2.Vm:
        return vm_basics_to_proto(vm)

    async def _describe(self, vm: Vm) -> vm_owner_pb2.Vm:
        return vm_to_proto(vm, await self._owner.statuses(vm))


def vm_owner_servicer(owner: VmOwner, manifest: Manifest) -> Servicer:
    """Return the service of the owner's server."""
    add = vm_owner_pb2_grpc.add_VmOwnerServicer_to_server
    return Servicer(add, VmOwnerServicer(owner, manifest), VM_OWNER)
