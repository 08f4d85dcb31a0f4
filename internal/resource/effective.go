package resource

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "drover/api/drover/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Effective is what a chain of profiles comes to: the profile itself first, then its parent, and so on to the last. Every field is set:
// toggles are on or off, rates a limit or -1, dscp -1 where nothing is written.
func Effective(chain []*v1.PortProfileSpec) *v1.PortProfileSpec {
	e := &v1.PortProfileSpec{
		Security: &v1.Security{}, Guards: &v1.Guards{Storm: &v1.StormControl{}}, Trunk: &v1.Trunk{},
		Qos: &v1.QoS{In: &v1.Rate{}, Out: &v1.Rate{}, Dscp: -1}, Mirror: &v1.Mirror{},
	}
	for _, s := range slices.Backward(chain) {
		inherit(e, s)
	}
	if len(chain) > 0 {
		e.Description, e.Parent = chain[0].GetDescription(), chain[0].GetParent()
	}
	changes := e.Security.MacChanges == v1.Toggle_TOGGLE_ON
	switch {
	case !changes:
		e.Security.MacLimit = 1
	case e.Security.MacLimit == 0:
		e.Security.MacLimit = 4
	}
	settle(e.Qos.In)
	settle(e.Qos.Out)
	return e
}

// settle fills in the parts of a rate that follow from others.
func settle(r *v1.Rate) {
	r.GuaranteeBps = max(r.GuaranteeBps, 0)
	if r.LimitBps <= 0 {
		r.LimitBps, r.BurstBytes = -1, 0
		return
	}
	if r.BurstBytes == 0 {
		r.BurstBytes = max(64<<10, r.LimitBps/8/20)
	}
}

// inherit lays what a profile says over what its parents have made.
func inherit(e, s *v1.PortProfileSpec) {
	toggle := func(to *v1.Toggle, is v1.Toggle) { *to = cmp.Or(is, *to) }
	number := func(to *int32, is int32) { *to = cmp.Or(is, *to) }
	sec, g := s.GetSecurity(), s.GetGuards()
	toggle(&e.Security.Promiscuous, sec.GetPromiscuous())
	toggle(&e.Security.ForgedTransmits, sec.GetForgedTransmits())
	toggle(&e.Security.MacChanges, sec.GetMacChanges())
	number(&e.Security.MacLimit, sec.GetMacLimit())
	toggle(&e.Guards.IpSource, g.GetIpSource())
	toggle(&e.Guards.Arp, g.GetArp())
	toggle(&e.Guards.Nd, g.GetNd())
	toggle(&e.Guards.DhcpSnooping, g.GetDhcpSnooping())
	toggle(&e.Guards.DhcpServer, g.GetDhcpServer())
	number(&e.Guards.DhcpRate, g.GetDhcpRate())
	toggle(&e.Guards.Ra, g.GetRa())
	toggle(&e.Guards.Bpdu, g.GetBpdu())
	toggle(&e.Guards.Control, g.GetControl())
	toggle(&e.Guards.VirtualRouter, g.GetVirtualRouter())
	if len(g.GetVirtualAddresses()) > 0 {
		e.Guards.VirtualAddresses = slices.Clone(g.VirtualAddresses)
	}
	number(&e.Guards.Storm.Broadcast, g.GetStorm().GetBroadcast())
	number(&e.Guards.Storm.Multicast, g.GetStorm().GetMulticast())
	number(&e.Guards.Storm.UnknownUnicast, g.GetStorm().GetUnknownUnicast())
	if s.GetTrunk() != nil {
		e.Trunk = proto.CloneOf(s.Trunk) // as a whole: an empty one ends what the parent has
	}
	if s.GetPrivateRole() != v1.PrivateRole_PRIVATE_ROLE_UNSPECIFIED {
		e.PrivateRole, e.Community = s.PrivateRole, s.Community
	}
	q := s.GetQos()
	rate(e.Qos.In, q.GetIn())
	rate(e.Qos.Out, q.GetOut())
	if q.GetDscpSet() || q.GetDscp() != 0 {
		e.Qos.Dscp, e.Qos.DscpSet = q.Dscp, q.Dscp >= 0
	}
	if q.GetCosSet() || q.GetCos() != 0 {
		e.Qos.Cos, e.Qos.CosSet = q.Cos, true
	}
	if s.GetMirror() != nil {
		e.Mirror = proto.CloneOf(s.Mirror) // likewise
	}
}

// rate inherits a limit together with its burst: a burst is made for a limit.
func rate(e, s *v1.Rate) {
	if s.GetLimitBps() != 0 {
		e.LimitBps, e.BurstBytes = s.LimitBps, 0
	}
	if s.GetBurstBytes() != 0 {
		e.BurstBytes = s.BurstBytes
	}
	if s.GetGuaranteeBps() != 0 {
		e.GuaranteeBps = s.GuaranteeBps
	}
}

// Differences are the fields in which two effective profiles differ, as their paths in the order of the API.
func Differences(before, after *v1.PortProfileSpec) []*v1.FieldDifference {
	var list []*v1.FieldDifference
	differ(before.ProtoReflect(), after.ProtoReflect(), "", &list)
	return slices.DeleteFunc(list, func(d *v1.FieldDifference) bool { return d.Field == "description" || d.Field == "parent" })
}

func differ(a, b protoreflect.Message, at string, list *[]*v1.FieldDifference) {
	fields := b.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		path := at + string(fd.Name())
		if fd.Message() != nil && !fd.IsList() && !fd.IsMap() {
			differ(a.Get(fd).Message(), b.Get(fd).Message(), path+".", list)
			continue
		}
		if was, is := told(fd, a.Get(fd)), told(fd, b.Get(fd)); was != is {
			*list = append(*list, &v1.FieldDifference{Field: path, Before: was, After: is})
		}
	}
}

func told(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case fd.IsList():
		var parts []string
		for i := range v.List().Len() {
			parts = append(parts, v.List().Get(i).String())
		}
		return strings.Join(parts, ",")
	case fd.Enum() != nil:
		if n := fd.Enum().Values().ByNumber(v.Enum()); n != nil {
			return word(fd.Enum(), n)
		}
	}
	return fmt.Sprint(v.Interface())
}

// Word is an enum value for people: PRIVATE_ROLE_ISOLATED is "isolated".
func Word(e protoreflect.Enum) string {
	if v := e.Descriptor().Values().ByNumber(e.Number()); v != nil {
		return word(e.Descriptor(), v)
	}
	return fmt.Sprint(e.Number())
}

// word takes off the prefix that the values of an enumeration share: all that their first one has before UNSPECIFIED.
func word(d protoreflect.EnumDescriptor, v protoreflect.EnumValueDescriptor) string {
	prefix := strings.TrimSuffix(string(d.Values().Get(0).Name()), "UNSPECIFIED")
	return strings.ToLower(strings.TrimPrefix(string(v.Name()), prefix))
}
