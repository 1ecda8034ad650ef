//! Encoder for the subset of the ACPI machine language that QEMU's tables use.
//!
//! Source: ACPI specification 6.5, chapter 20. Every function returns the bytes of one term. Integers and package lengths take
//! their shortest form, as QEMU writes them.

/// Bytes of one or more AML terms.
pub(super) type Aml = Vec<u8>;

const EXT_PREFIX: u8 = 0x5b;

/// Where an operation region lies.
#[derive(Clone, Copy)]
pub(super) enum RegionSpace {
    SystemIo = 1,
    PciConfig = 2,
}

/// Access width of a field, with the rule for the bits beside it: ACPI `AccessType | UpdateRule << 5`.
#[derive(Clone, Copy)]
pub(super) enum FieldAccess {
    BytePreserve = 0x01,
    DwordPreserve = 0x03,
    ByteWriteAsZeros = 0x41,
    DwordWriteAsZeros = 0x43,
}

/// One entry of a field list, widths in bits.
pub(super) enum FieldUnit {
    Named(&'static str, u32),
    Reserved(u32),
}

pub(super) fn concat(terms: &[Aml]) -> Aml {
    terms.concat()
}

/// Shortest integer constant.
pub(super) fn int(value: u64) -> Aml {
    let bytes = value.to_le_bytes();
    let (prefix, len): (&[u8], usize) = match value {
        0 | 1 => (&[], 1),
        2..=0xff => (&[0x0a], 1),
        0x100..=0xffff => (&[0x0b], 2),
        0x1_0000..=0xffff_ffff => (&[0x0c], 4),
        _ => (&[0x0e], 8),
    };
    prefix.iter().chain(bytes.iter().take(len)).copied().collect()
}

pub(super) fn string(text: &str) -> Aml {
    [&[0x0d], text.as_bytes(), &[0]].concat()
}

pub(super) fn arg(index: u8) -> Aml {
    vec![0x68 + index]
}

pub(super) fn local(index: u8) -> Aml {
    vec![0x60 + index]
}

/// A name path such as `\_SB.PCI0`; segments are padded with underscores.
pub(super) fn path(path: &str) -> Aml {
    let (mut out, rest) = match path.strip_prefix('\\') {
        Some(rest) => (vec![b'\\'], rest),
        None => (Vec::new(), path),
    };
    let segments: Vec<&str> = rest.split('.').filter(|segment| !segment.is_empty()).collect();
    match segments.len() {
        0 => out.push(0),
        1 => {}
        2 => out.push(0x2e),
        count => out.extend([0x2f, count as u8]),
    }
    for segment in segments {
        out.extend(segment.bytes().chain(std::iter::repeat(b'_')).take(4));
    }
    out
}

/// A name path that starts at the scope around the current one.
pub(super) fn parent_path(relative: &str) -> Aml {
    [b"^", path(relative).as_slice()].concat()
}

/// Compressed identifier of a device, such as `PNP0A08`.
pub(super) fn eisa_id(id: &str) -> Aml {
    let (vendor, product) = id.split_at(3);
    let vendor = vendor.bytes().fold(0_u32, |value, letter| value << 5 | u32::from(letter - 0x40));
    let product = u32::from_str_radix(product, 16).unwrap_or_default();
    [&[0x0c], (vendor << 16 | product).to_be_bytes().as_slice()].concat()
}

/// Package length for `content_len` bytes, counting itself.
fn package_length(content_len: usize) -> Aml {
    let fits = |len_bytes: usize, bits: u32| content_len + len_bytes < 1 << bits;
    if fits(1, 6) {
        return vec![(content_len + 1) as u8];
    }
    let follow = if fits(2, 12) {
        1
    } else if fits(3, 20) {
        2
    } else {
        3
    };
    spread_length(content_len + 1 + follow, follow)
}

/// `length` with `follow` bytes after the first.
fn spread_length(length: usize, follow: usize) -> Aml {
    let lead = (follow << 6) as u8 | (length & 0xf) as u8;
    let rest = (length >> 4).to_le_bytes();
    std::iter::once(lead).chain(rest.into_iter().take(follow)).collect()
}

/// Length of a field unit in bits, which does not count itself.
fn bit_length(bits: u32) -> Aml {
    let bits = bits as usize;
    if bits < 1 << 6 { vec![bits as u8] } else { spread_length(bits, 1) }
}

fn package_op(op: &[u8], content: &[u8]) -> Aml {
    [op, &package_length(content.len()), content].concat()
}

fn op(code: u8, operands: &[Aml]) -> Aml {
    [&[code], operands.concat().as_slice()].concat()
}

fn block(code: &[u8], head: Aml, body: &[Aml]) -> Aml {
    package_op(code, &[head, body.concat()].concat())
}

pub(super) fn scope(name: &str, body: &[Aml]) -> Aml {
    block(&[0x10], path(name), body)
}

pub(super) fn device(name: &str, body: &[Aml]) -> Aml {
    block(&[EXT_PREFIX, 0x82], path(name), body)
}

pub(super) fn name(name: &str, value: Aml) -> Aml {
    op(0x08, &[path(name), value])
}

pub(super) fn method(name: &str, args: u8, body: &[Aml]) -> Aml {
    block(&[0x14], [path(name), vec![args]].concat(), body)
}

pub(super) fn serialized_method(name: &str, args: u8, body: &[Aml]) -> Aml {
    method(name, args | 0x08, body)
}

/// A processor object without a register block.
pub(super) fn processor(name: &str, id: u8, body: &[Aml]) -> Aml {
    block(&[EXT_PREFIX, 0x83], [path(name), vec![id, 0, 0, 0, 0, 0]].concat(), body)
}

pub(super) fn package(elements: &[Aml]) -> Aml {
    sized_package(elements.len() as u8, elements)
}

/// A package of `count` elements of which only the first are given.
pub(super) fn sized_package(count: u8, elements: &[Aml]) -> Aml {
    block(&[0x12], vec![count], elements)
}

pub(super) fn buffer(bytes: &[u8]) -> Aml {
    package_op(&[0x11], &[int(bytes.len() as u64).as_slice(), bytes].concat())
}

/// A UUID in its mixed-endian memory form; `uuid` is the usual text.
pub(super) fn uuid(uuid: &str) -> Aml {
    let digits: Vec<u8> = uuid.bytes().filter(|byte| *byte != b'-').collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or_default())
        .collect();
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let memory: Vec<u8> = order.iter().filter_map(|index| bytes.get(*index).copied()).collect();
    buffer(&memory)
}

pub(super) fn operation_region(name: &str, space: RegionSpace, offset: u64, len: u64) -> Aml {
    [vec![EXT_PREFIX, 0x80], path(name), vec![space as u8], int(offset), int(len)].concat()
}

pub(super) fn field(region: &str, access: FieldAccess, units: &[FieldUnit]) -> Aml {
    let units = units.iter().flat_map(|unit| match unit {
        FieldUnit::Named(name, bits) => [path(name), bit_length(*bits)].concat(),
        FieldUnit::Reserved(bits) => [vec![0], bit_length(*bits)].concat(),
    });
    package_op(&[EXT_PREFIX, 0x81], &path(region).into_iter().chain([access as u8]).chain(units).collect::<Aml>())
}

pub(super) fn create_dword_field(source: Aml, offset: u64, name: &str) -> Aml {
    op(0x8a, &[source, int(offset), path(name)])
}

pub(super) fn mutex(name: &str) -> Aml {
    [vec![EXT_PREFIX, 0x01], path(name), vec![0]].concat()
}

/// Waits for a mutex without a time limit.
pub(super) fn acquire(name: &str) -> Aml {
    [vec![EXT_PREFIX, 0x23], path(name), vec![0xff, 0xff]].concat()
}

pub(super) fn release(name: &str) -> Aml {
    [vec![EXT_PREFIX, 0x27], path(name)].concat()
}

pub(super) fn debug() -> Aml {
    vec![EXT_PREFIX, 0x31]
}

pub(super) fn if_(condition: Aml, body: &[Aml]) -> Aml {
    block(&[0xa0], condition, body)
}

pub(super) fn else_(body: &[Aml]) -> Aml {
    block(&[0xa1], Vec::new(), body)
}

pub(super) fn while_(condition: Aml, body: &[Aml]) -> Aml {
    block(&[0xa2], condition, body)
}

pub(super) fn break_() -> Aml {
    vec![0xa5]
}

pub(super) fn return_(value: Aml) -> Aml {
    op(0xa4, &[value])
}

pub(super) fn store(value: Aml, target: Aml) -> Aml {
    op(0x70, &[value, target])
}

pub(super) fn increment(target: Aml) -> Aml {
    op(0x75, &[target])
}

pub(super) fn subtract(left: Aml, right: Aml, target: Aml) -> Aml {
    op(0x74, &[left, right, target])
}

pub(super) fn add(left: Aml, right: Aml) -> Aml {
    op(0x72, &[left, right, discard()])
}

pub(super) fn shift_left(value: Aml, count: Aml) -> Aml {
    op(0x79, &[value, count, discard()])
}

pub(super) fn shift_right(value: Aml, count: Aml) -> Aml {
    op(0x7a, &[value, count, discard()])
}

/// Bitwise and; `target` may be [`discard`].
pub(super) fn and(left: Aml, right: Aml, target: Aml) -> Aml {
    op(0x7b, &[left, right, target])
}

/// Bitwise or; `target` may be [`discard`].
pub(super) fn or(left: Aml, right: Aml, target: Aml) -> Aml {
    op(0x7d, &[left, right, target])
}

/// No target.
pub(super) fn discard() -> Aml {
    vec![0]
}

pub(super) fn not(value: Aml) -> Aml {
    op(0x92, &[value])
}

pub(super) fn equal(left: Aml, right: Aml) -> Aml {
    op(0x93, &[left, right])
}

pub(super) fn less(left: Aml, right: Aml) -> Aml {
    op(0x95, &[left, right])
}

pub(super) fn land(left: Aml, right: Aml) -> Aml {
    op(0x90, &[left, right])
}

pub(super) fn lor(left: Aml, right: Aml) -> Aml {
    op(0x91, &[left, right])
}

/// `container[element]`.
pub(super) fn index(container: Aml, element: Aml) -> Aml {
    op(0x88, &[container, element, discard()])
}

/// The value of `container[element]`.
pub(super) fn element(container: Aml, at: Aml) -> Aml {
    op(0x83, &[index(container, at)])
}

pub(super) fn size_of(value: Aml) -> Aml {
    op(0x87, &[value])
}

pub(super) fn notify(device: &str, value: Aml) -> Aml {
    op(0x86, &[path(device), value])
}

pub(super) fn to_hex_string(value: Aml, target: Aml) -> Aml {
    op(0x98, &[value, target])
}

pub(super) fn to_buffer(value: Aml, target: Aml) -> Aml {
    op(0x96, &[value, target])
}

pub(super) fn call(method: &str, args: &[Aml]) -> Aml {
    [path(method), args.concat()].concat()
}
