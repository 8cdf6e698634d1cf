package proxyproto

// Append appends the header to send for h: version 1 if h.Version is 1, else version 2. What it appends [Parse] reads
// back as h, but for what version 1 has no words for.
//
// As HAProxy does, addresses of two families go out as IPv6, the IPv4 one mapped (::ffff:192.0.2.1); two mapped ones go out as
// IPv4. A header that names no client, or ends of which one is TCP and one unix, goes out as LOCAL, in version 1 as UNKNOWN. So do unix
// addresses in version 1; in version 2 they have a family. TLVs are for version 2 with a client; one that does not fit
// into [MaxSize] is left out.
func Append(dst []byte, h Header) []byte {
	if h.Version == 1 {
		return append1(dst, h)
	}
	return append2(dst, h)
}

// family is the byte of version 2 for the two ends.
func (h Header) family() byte {
	src, dst := h.Source, h.Destination
	switch {
	case h.Local:
	case src.IP.IsValid() && dst.IP.IsValid():
		if src.IP.Addr().Unmap().Is4() && dst.IP.Addr().Unmap().Is4() {
			return familyTCP4
		}
		return familyTCP6
	case src.IP.IsValid() || dst.IP.IsValid() || src.Path == "" && dst.Path == "":
	case len(src.Path) <= unixPath && len(dst.Path) <= unixPath:
		return familyUnix
	}
	return familyUnspec
}
