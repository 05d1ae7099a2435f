// What of runtime/ring.py and runtime/doorbell.py runs for every message, compiled by runtime/native.py.
//
// An End does what is in order. Whatever is not (no room, no whole record, an argument of the wrong kind) it
// leaves as it is and answers False: then ring.py looks, and says what is the matter. Both read and write the
// layout that is drawn in ring.py, and may stand at the two ends of one ring.
//
// Every publication is a release store and every look at the other side's cursor an acquire load.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <immintrin.h>
#include <initializer_list>
#include <sched.h>
#include <structmember.h>
#include <unistd.h>

namespace {

// CRC32 as zlib computes it. Blocks of 16 bytes are folded into the next by carry-less multiplication: bits that
// lie n bits before the end count as the polynomial x^n, which stands for its remainder. Tables do the rest.

uint32_t table[8][256];
__m128i by_one, by_four;

uint64_t power(int exponent) {  // x^exponent modulo the polynomial, bits reversed
  uint32_t value = 0x80000000;
  while (exponent--) value = value >> 1 ^ (value & 1 ? 0xEDB88320 : 0);
  return uint64_t(value) << 1;
}

void make_constants() {
  for (int byte = 0; byte < 256; byte++) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xEDB88320 : 0);
    table[0][byte] = value;
  }
  for (int row = 1; row < 8; row++)
    for (int byte = 0; byte < 256; byte++)
      table[row][byte] = table[row - 1][byte] >> 8 ^ table[0][table[row - 1][byte] & 255];
  by_one = _mm_set_epi64x(power(128 - 32), power(128 + 32));
  by_four = _mm_set_epi64x(power(512 - 32), power(512 + 32));
}

uint32_t sliced(uint32_t crc, const char* data, size_t length) {
  for (; length >= 8; data += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    word ^= crc;
    crc = 0;
    for (int i = 0; i < 8; i++) crc ^= table[7 - i][word >> 8 * i & 255];
  }
  while (length--) crc = crc >> 8 ^ table[0][(crc ^ uint8_t(*data++)) & 255];
  return crc;
}

__m128i block(const char* data) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data)); }

__m128i fold(__m128i earlier, __m128i distance, __m128i later) {
  __m128i low = _mm_clmulepi64_si128(earlier, distance, 0x00);
  __m128i high = _mm_clmulepi64_si128(earlier, distance, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), later);
}

uint32_t crc32(const char* data, size_t length, uint32_t value) {
  uint32_t crc = ~value;
  if (length >= 16) {
    __m128i sum = _mm_xor_si128(block(data), _mm_cvtsi32_si128(int(crc)));
    data += 16, length -= 16;
    if (length >= 112) {
      __m128i second = block(data), third = block(data + 16), fourth = block(data + 32);
      for (data += 48, length -= 48; length >= 64; data += 64, length -= 64) {
        sum = fold(sum, by_four, block(data));
        second = fold(second, by_four, block(data + 16));
        third = fold(third, by_four, block(data + 32));
        fourth = fold(fourth, by_four, block(data + 48));
      }
      sum = fold(fold(fold(sum, by_one, second), by_one, third), by_one, fourth);
    }
    for (; length >= 16; data += 16, length -= 16) sum = fold(sum, by_one, block(data));
    char last[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(last), sum);
    crc = sliced(0, last, 16);
  }
  return ~sliced(crc, data, length);
}

// One end of a ring.

constexpr uint64_t TAIL = 64, HEAD = 128, DATA = 256;  // bytes from the beginning
constexpr uint64_t BATCH = 1 << 17;
constexpr uint32_t PADDING = 0xFFFFFFFF;

struct Record {
  uint32_t length, checksum;
  uint64_t sequence;
  uint32_t incarnation, zero;
};
constexpr uint64_t OVERHEAD = sizeof(Record);
static_assert(OVERHEAD == 24 && offsetof(Record, incarnation) == 16, "as in runtime/ring.py");

struct End {
  PyObject_HEAD
  Py_buffer view;
  char* base;  // null once released
  uint64_t capacity, tail, head, head_seen;
  PyObject* reach;  // null, or told at the failpoints
};

uint64_t taken(uint64_t length) { return (length + OVERHEAD + 7) & ~uint64_t(7); }

uint64_t look(End* end, uint64_t where) {
  return __atomic_load_n(reinterpret_cast<uint64_t*>(end->base + where), __ATOMIC_ACQUIRE);
}

bool passes(End* end, const char* point) {
  if (!end->reach) return true;
  PyObject* done = PyObject_CallFunction(end->reach, "s", point);
  Py_XDECREF(done);
  return done != nullptr;
}

bool publish(End* end, uint64_t where, uint64_t position) {
  bool is_tail = where == TAIL;
  if (!passes(end, is_tail ? "ring.tail.before" : "ring.head.before")) return false;
  __atomic_store_n(reinterpret_cast<uint64_t*>(end->base + where), position, __ATOMIC_RELEASE);
  (is_tail ? end->tail : end->head) = position;
  return passes(end, is_tail ? "ring.tail.after" : "ring.head.after");
}

bool has_room(End* end, uint64_t size) {
  if (end->tail + size <= end->head_seen + end->capacity) return true;
  uint64_t head = look(end, HEAD);
  if (end->tail - head > end->capacity) return false;
  end->head_seen = head;
  return end->tail + size <= head + end->capacity;
}

PyObject* end_write(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  End* end = reinterpret_cast<End*>(self);
  if (count != 2 || !end->base || !PyBytes_CheckExact(arguments[0]) || !PyLong_Check(arguments[1])) Py_RETURN_FALSE;
  uint64_t length = PyBytes_GET_SIZE(arguments[0]);
  uint64_t incarnation = PyLong_AsUnsignedLongLong(arguments[1]);
  if (incarnation > UINT32_MAX || length > end->capacity / 2 - OVERHEAD) {
    PyErr_Clear();
    Py_RETURN_FALSE;
  }
  uint64_t tail = end->tail, at = tail % end->capacity, size = taken(length);
  uint64_t padding = at + size > end->capacity ? end->capacity - at : 0;
  if (!has_room(end, padding + size)) Py_RETURN_FALSE;
  if (padding) {
    uint32_t mark[2] = {PADDING, uint32_t(tail)};
    memcpy(end->base + DATA + at, mark, sizeof mark);
    tail += padding;
    at = 0;
  }
  const char* payload = PyBytes_AS_STRING(arguments[0]);
  uint32_t checksum = crc32(payload, length, uint32_t(length ^ incarnation));
  Record record = {uint32_t(length), checksum, tail, uint32_t(incarnation), 0};
  memcpy(end->base + DATA + at, &record, OVERHEAD);
  memcpy(end->base + DATA + at + OVERHEAD, payload, length);
  if (!publish(end, TAIL, tail + size)) return nullptr;
  Py_RETURN_TRUE;
}

// The payload of the whole record at `head`, a new reference; null without an exception where there is none.
PyObject* payload_at(End* end, uint64_t head, uint64_t tail, const Record& record) {
  uint64_t at = head % end->capacity, size = taken(record.length);
  if (record.sequence != head || size > tail - head || size > end->capacity - at) return nullptr;
  PyObject* payload = PyBytes_FromStringAndSize(nullptr, record.length);
  if (!payload) return nullptr;
  char* copy = PyBytes_AS_STRING(payload);
  memcpy(copy, end->base + DATA + at + OVERHEAD, record.length);
  if (crc32(copy, record.length, record.length ^ record.incarnation) == record.checksum) return payload;
  Py_DECREF(payload);
  return nullptr;
}

PyObject* end_read(PyObject* self, PyObject* most) {
  End* end = reinterpret_cast<End*>(self);
  if (!end->base) Py_RETURN_FALSE;
  Py_ssize_t limit = PyLong_AsSsize_t(most);
  if (limit == -1 && PyErr_Occurred()) return nullptr;
  uint64_t head = end->head, tail = look(end, TAIL);
  if (head == tail) Py_RETURN_NONE;
  if (tail - head > end->capacity || tail % 8) Py_RETURN_FALSE;
  PyObject* payloads = PyList_New(0);
  if (!payloads) return nullptr;
  uint32_t incarnation = 0;
  uint64_t begin = head, done = head;
  while (head < tail && head - begin < BATCH && PyList_GET_SIZE(payloads) < limit) {
    uint64_t at = head % end->capacity;
    Record record;
    memcpy(&record, end->base + DATA + at, OVERHEAD);
    if (record.length == PADDING) {
      if (record.checksum != uint32_t(head) || end->capacity - at >= tail - head) break;
      begin = head += end->capacity - at;
      continue;
    }
    if (PyList_GET_SIZE(payloads) && record.incarnation != incarnation) break;
    PyObject* payload = payload_at(end, head, tail, record);
    int failed = payload ? PyList_Append(payloads, payload) : -1;
    Py_XDECREF(payload);
    if (failed) break;
    incarnation = record.incarnation;
    done = head += taken(record.length);
  }
  bool some = PyList_GET_SIZE(payloads) > 0;
  if (PyErr_Occurred() || (some && !publish(end, HEAD, done))) {
    Py_DECREF(payloads);
    return nullptr;
  }
  if (some) return Py_BuildValue("(IN)", incarnation, payloads);
  Py_DECREF(payloads);
  Py_RETURN_FALSE;
}

PyObject* end_release(PyObject* self, PyObject*) {
  End* end = reinterpret_cast<End*>(self);
  if (end->base) PyBuffer_Release(&end->view);
  end->base = nullptr;
  Py_RETURN_NONE;
}

PyObject* end_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject *buffer, *reach;
  unsigned long long capacity;
  if (!PyArg_ParseTuple(arguments, "OKO", &buffer, &capacity, &reach)) return nullptr;
  End* end = reinterpret_cast<End*>(type->tp_alloc(type, 0));
  if (!end) return nullptr;
  if (PyObject_GetBuffer(buffer, &end->view, PyBUF_WRITABLE)) {
    Py_DECREF(end);
    return nullptr;
  }
  end->base = static_cast<char*>(end->view.buf);
  if (uint64_t(end->view.len) < DATA + capacity + OVERHEAD) {
    Py_DECREF(end);
    return PyErr_Format(PyExc_ValueError, "%zd bytes are no ring of %llu", end->view.len, capacity);
  }
  end->capacity = capacity;
  end->tail = look(end, TAIL);
  end->head = end->head_seen = look(end, HEAD);
  if (reach != Py_None) end->reach = Py_NewRef(reach);
  return reinterpret_cast<PyObject*>(end);
}

void end_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_DECREF(end_release(self, nullptr));
  Py_XDECREF(reinterpret_cast<End*>(self)->reach);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef end_methods[] = {
    {"write", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(end_write)), METH_FASTCALL, nullptr},
    {"read", end_read, METH_O, nullptr},
    {"release", end_release, METH_NOARGS, nullptr},
    {}};
PyMemberDef end_members[] = {{"tail", T_ULONGLONG, offsetof(End, tail), 0, nullptr},
                             {"head", T_ULONGLONG, offsetof(End, head), 0, nullptr},
                             {"head_seen", T_ULONGLONG, offsetof(End, head_seen), 0, nullptr},
                             {}};
PyType_Slot end_slots[] = {{Py_tp_new, reinterpret_cast<void*>(end_new)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(end_free)},
                           {Py_tp_methods, end_methods},
                           {Py_tp_members, end_members},
                           {}};
PyType_Spec end_spec = {"native.End", sizeof(End), 0, Py_TPFLAGS_DEFAULT, end_slots};

PyObject* end_type;

bool any_unread(PyObject* ends) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ends); i++) {
    End* end = reinterpret_cast<End*>(PyTuple_GET_ITEM(ends, i));
    if (end->base && look(end, TAIL) != end->head) return true;
  }
  return false;
}

int64_t now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return int64_t(time.tv_sec) * 1000000000 + time.tv_nsec;
}

// Look into the rings again and again, and let others have the processor in between: the sender may wait for it.
PyObject* watch(PyObject*, PyObject* arguments) {
  PyObject* ends;
  long long nanoseconds;
  if (!PyArg_ParseTuple(arguments, "O!L", &PyTuple_Type, &ends, &nanoseconds)) return nullptr;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ends); i++)
    if (Py_TYPE(PyTuple_GET_ITEM(ends, i)) != reinterpret_cast<PyTypeObject*>(end_type))
      return PyErr_Format(PyExc_TypeError, "only ends can be watched");
  bool found;
  Py_BEGIN_ALLOW_THREADS
  int64_t until = now() + nanoseconds;
  while (!(found = any_unread(ends)) && now() < until) sched_yield();
  Py_END_ALLOW_THREADS
  return PyBool_FromLong(found);
}

// A doorbell: an eventfd, and the word in which its owner says that it is awake.

struct Bell {
  PyObject_HEAD
  Py_buffer view;
  uint64_t* awake;
  int fd;
};

PyObject* bell_ring(PyObject* self, PyObject*) {
  Bell* bell = reinterpret_cast<Bell*>(self);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);  // what was published before is seen by an owner that lies down now
  if (bell->fd < 0 || (bell->awake && __atomic_load_n(bell->awake, __ATOMIC_RELAXED))) Py_RETURN_NONE;
  uint64_t once = 1;
  if (write(bell->fd, &once, sizeof once) < 0 && errno != EAGAIN) return PyErr_SetFromErrno(PyExc_OSError);
  Py_RETURN_NONE;
}

PyObject* bell_rest(PyObject* self, PyObject*) {
  Bell* bell = reinterpret_cast<Bell*>(self);
  if (bell->awake) __atomic_exchange_n(bell->awake, 0, __ATOMIC_SEQ_CST);
  Py_RETURN_NONE;
}

PyObject* bell_clear(PyObject* self, PyObject*) {
  Bell* bell = reinterpret_cast<Bell*>(self);
  uint64_t rung;
  if (read(bell->fd, &rung, sizeof rung) < 0 && errno != EAGAIN) return PyErr_SetFromErrno(PyExc_OSError);
  if (bell->awake) __atomic_store_n(bell->awake, 1, __ATOMIC_RELAXED);
  Py_RETURN_NONE;
}

PyObject* bell_release(PyObject* self, PyObject*) {
  Bell* bell = reinterpret_cast<Bell*>(self);
  if (bell->awake) PyBuffer_Release(&bell->view);
  bell->awake = nullptr;
  bell->fd = -1;
  Py_RETURN_NONE;
}

PyObject* bell_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
  int fd;
  PyObject* word;
  if (!PyArg_ParseTuple(arguments, "iO", &fd, &word)) return nullptr;
  Bell* bell = reinterpret_cast<Bell*>(type->tp_alloc(type, 0));
  if (!bell) return nullptr;
  bell->fd = fd;
  if (word != Py_None) {
    if (PyObject_GetBuffer(word, &bell->view, PyBUF_WRITABLE)) {
      Py_DECREF(bell);
      return nullptr;
    }
    bell->awake = static_cast<uint64_t*>(bell->view.buf);
  }
  return reinterpret_cast<PyObject*>(bell);
}

void bell_free(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  Py_DECREF(bell_release(self, nullptr));
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef bell_methods[] = {{"ring", bell_ring, METH_NOARGS, nullptr},
                              {"rest", bell_rest, METH_NOARGS, nullptr},
                              {"clear", bell_clear, METH_NOARGS, nullptr},
                              {"release", bell_release, METH_NOARGS, nullptr},
                              {}};
PyType_Slot bell_slots[] = {{Py_tp_new, reinterpret_cast<void*>(bell_new)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(bell_free)},
                            {Py_tp_methods, bell_methods},
                            {}};
PyType_Spec bell_spec = {"native.Bell", sizeof(Bell), 0, Py_TPFLAGS_DEFAULT, bell_slots};

PyObject* checksum(PyObject*, PyObject* arguments) {
  const char* data;
  Py_ssize_t length;
  unsigned int value;
  if (!PyArg_ParseTuple(arguments, "y#I", &data, &length, &value)) return nullptr;
  return PyLong_FromUnsignedLong(crc32(data, size_t(length), value));
}

PyMethodDef functions[] = {{"crc32", checksum, METH_VARARGS, nullptr},
                           {"watch", watch, METH_VARARGS, nullptr},
                           {}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", nullptr, -1, functions};

}  // namespace

PyMODINIT_FUNC PyInit_native() {
  if (!__builtin_cpu_supports("pclmul"))
    return PyErr_Format(PyExc_ImportError, "this processor has no carry-less multiplication");
  make_constants();
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyObject* bell_type = PyType_FromSpec(&bell_spec);
  end_type = PyType_FromSpec(&end_spec);
  for (PyObject* type : {end_type, bell_type})
    if (!type || PyModule_AddType(module, reinterpret_cast<PyTypeObject*>(type))) {
      Py_DECREF(module);
      return nullptr;
    }
  Py_DECREF(bell_type);
  return module;
}
