// The vector type of the kernels, written once. What an instruction set does in its own way stands
// in its classes Doubles and Floats, see vector_*.h. Every function is a member of a template over
// them, so that none can be linked in place of another set's. The file includes no torch header.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

#include "half.h"

namespace fused_sigmoid {

// A vector is one register, two or four, computed operation by operation: each hides the latency of
// the others even where the processor does not look far enough ahead to find independent work.
template <class Lanes, int count>
struct Vector {
  using Scalar = typename Lanes::Scalar;
  using Register = typename Lanes::Register;
  using Bits = typename Lanes::Bits;
  using Unsigned = typename Lanes::Unsigned;
  static constexpr int lanes = sizeof(Register) / sizeof(Scalar);
  static constexpr int64_t size = count * lanes;
  // Why loops, and those of AVX2 above all, take two registers operation by operation: a Zen 3 has
  // the ports for a float32 register in 5 to 6 cycles, but took 11 for each of some that came one
  // after the other. Their operations are chains of 56 cycles, of which its schedulers hold about
  // five at a time. In pairs the value took 1.05 to 1.14 times less; AVX-512 loses nothing by them.
  // Four registers an iteration, as two pairs, were measured to be the fastest, or as fast as any.
  using Group = Vector<Lanes, lanes == 1 ? 1 : 2>;
  static constexpr int groups = lanes == 1 ? 4 : 2;
  // What takes more operations in a row is computed for four registers at a time.
  using Four = Vector<Lanes, lanes == 1 ? 1 : 4>;
  Register v[count];

  // A sum of vectors in double precision, whose order follows from that of the vectors alone.
  class Total {
   public:
    template <int registers>
    [[gnu::always_inline]] void add(const Vector<Lanes, registers>& vector) {
      for (const Register& numbers : vector.v) Lanes::add_to(sums_, numbers);
    }
    double sum() const {
      constexpr size_t wide_lanes = sizeof(typename Lanes::Wide) / sizeof(double);
      double numbers[2 * wide_lanes], sum = 0;
      std::memcpy(numbers, sums_, sizeof(sums_));
      for (const double number : numbers) sum += number;
      return sum;
    }

   private:
    typename Lanes::Wide sums_[2] = {};
  };

  Vector() = default;
  Vector(Register first, Register second) : v{first, second} {}
  // A number minus a register of zeros is that number in each lane, and -0 stays -0.
  explicit Vector(Scalar scalar) : Vector(make([=](int) { return scalar - Register(); })) {}

  static Vector load(const Scalar* from) {
    return make([=](int i) { return read<Register>(from + i * lanes); });
  }
  static Vector load(const Float16* from) {
    using Halves = decltype(Lanes::to_float16s(Register()));
    return make([=](int i) { return Lanes::from_float16s(read<Halves>(from + i * lanes)); });
  }
  static Vector load(const BFloat16* from) {
    if constexpr (count == 4) {
      return joined(Pair::load(from), Pair::load(from + Pair::size));
    } else {
      Vector loaded;
      Lanes::from_bfloat16s(read<decltype(Lanes::template to_bfloat16s<false>(loaded.v))>(from),
                            loaded.v);
      return loaded;
    }
  }
  // Loads numbers that stand beside elements, in the lanes in which `load` puts those.
  template <class Element>
  [[gnu::always_inline]] static Vector load_beside(const Scalar* from) {
    if constexpr (lanes == 1 || !std::is_same_v<Element, BFloat16>) {
      return load(from);
    } else if constexpr (count == 4) {
      return joined(Pair::template load_beside<Element>(from),
                    Pair::template load_beside<Element>(from + Pair::size));
    } else {
      Vector loaded;
      Lanes::deal(read<Register>(from), read<Register>(from + lanes), loaded.v);
      return each<with_plain_nan>(loaded);
    }
  }
  template <class Element>
  void store(Element* to) const {
    for (int i = 0; i < count; ++i) write(to + i * lanes, v[i]);
  }
  void store(BFloat16* to) const {
    if constexpr (count == 4) {
      for (int i = 0; i < 2; ++i) Pair{v[2 * i], v[2 * i + 1]}.store(to + i * Pair::size);
    } else {
      write(to, Lanes::template to_bfloat16s<false>(v));
    }
  }
  // This rounds what lies in the middle between two numbers up, which takes fewer instructions.
  void store_half_up(BFloat16* to) const { write(to, Lanes::template to_bfloat16s<true>(v)); }

  friend Vector operator+(Vector a, Vector b) { return each(std::plus(), a, b); }
  friend Vector operator-(Vector a, Vector b) { return each(std::minus(), a, b); }
  friend Vector operator*(Vector a, Vector b) { return each(std::multiplies(), a, b); }
  friend Vector operator/(Vector a, Vector b) { return each(std::divides(), a, b); }
  friend Vector operator-(Vector a) { return each(std::negate(), a); }
  friend Vector fma(Vector a, Vector b, Vector c) { return each<Lanes::fma>(a, b, c); }
  // This is c - a b, rounded once; compilers make one instruction of it.
  friend Vector fnma(Vector a, Vector b, Vector c) { return fma(-a, b, c); }
  friend Vector abs(Vector a) { return each<Lanes::abs>(a); }
  // If an argument is a NaN, min and max return the second one.
  friend Vector min(Vector a, Vector b) { return each<Lanes::min>(a, b); }
  friend Vector max(Vector a, Vector b) { return each<Lanes::max>(a, b); }
  // This is `negative` where the sign bit of x is set, as of -0, and `other` elsewhere.
  friend Vector if_negative(Vector x, Vector negative, Vector other) {
    return each<select>(x, negative, other);
  }
  friend Vector if_zero(Vector x, Vector zero, Vector other) {
    return each<select_zero>(x, zero, other);
  }
  // This is 2^m, times a factor that is in the table, where the low bits of `shifted` are 8 m: the
  // entry that the lowest three bits name, to which those above are added as the exponent. Of a NaN
  // it is any number.
  friend Vector power_of_two(Vector shifted, const Unsigned (&powers)[8]) {
    constexpr int significand = std::numeric_limits<Scalar>::digits - 1;
    return make([&](int i) {
      const Bits bits = __builtin_bit_cast(Bits, shifted.v[i]);
      const Bits sum = Lanes::entries(powers, bits) + (bits << (significand - 3));
      return __builtin_bit_cast(Register, sum);
    });
  }
  friend Vector rounded_to_float16(Vector a) {
    return make([&](int i) { return Lanes::from_float16s(Lanes::to_float16s(a.v[i])); });
  }
  friend Vector rounded_to_bfloat16(Vector a) { return each<Lanes::rounded_to_bfloat16>(a); }

 private:
  // bfloat16s are dealt out to two registers.
  using Pair = Vector<Lanes, 2>;
  static Vector joined(Pair a, Pair b) {
    Vector whole;
    whole.v[0] = a.v[0], whole.v[1] = a.v[1], whole.v[2] = b.v[0], whole.v[3] = b.v[1];
    return whole;
  }
  // Without the attribute GCC counts these calls as work of the loops, and inlines less into them.
  template <class Operation>
  [[gnu::always_inline]] static Vector make(Operation operation) {
    Vector made;
    made.v[0] = operation(0);
    if constexpr (count >= 2) made.v[1] = operation(1);
    if constexpr (count == 4) {
      made.v[2] = operation(2);
      made.v[3] = operation(3);
    }
    return made;
  }
  template <auto operation, class... Operands>
  [[gnu::always_inline]] static Vector each(const Operands&... operands) {
    return make([&](int i) { return operation(operands.v[i]...); });
  }
  template <class Operation, class... Operands>
  [[gnu::always_inline]] static Vector each(Operation operation, const Operands&... operands) {
    return make([&](int i) { return operation(operands.v[i]...); });
  }
  static Register select(Register x, Register negative, Register other) {
    return __builtin_bit_cast(Bits, x) > (~Bits() >> 1) ? negative : other;
  }
  static Register select_zero(Register x, Register zero, Register other) {
    return x == Register() ? zero : other;
  }
  // A NaN of which every bit is set would be rounded to a bfloat16 of 0.
  static Register with_plain_nan(Register a) {
    return a == a ? a : Register() + std::numeric_limits<Scalar>::quiet_NaN();
  }
  // Elements need not be aligned: torch.frombuffer takes any offset.
  template <class To>
  static To read(const void* from) {
    To to;
    std::memcpy(&to, from, sizeof(to));
    return to;
  }
  template <class From>
  static void write(void* to, From from) {
    std::memcpy(to, &from, sizeof(from));
  }
  static void write(Float16* to, Register a) { write<>(to, Lanes::to_float16s(a)); }
};

template <class Doubles, class Floats, int registers_of_bfloat16>
struct VectorsOf {
  using Double = Vector<Doubles, 1>;
  using Float = Vector<Floats, 1>;
  using Bfloat16 = Vector<Floats, registers_of_bfloat16>;
};

// Registers are of the vector extension of GCC and clang, in which an operator works on each lane
// and a cast keeps the bits. The last three arguments are intrinsics of the instruction set.
template <class Element, class Integer, int bytes, auto fma_, auto min_, auto max_>
struct Registers {
  using Scalar = Element;
  using Unsigned = Integer;
  using Register [[gnu::vector_size(bytes)]] = Element;
  using Bits [[gnu::vector_size(bytes)]] = Unsigned;
  using Wide [[gnu::vector_size(bytes)]] = double;
  static Register fma(Register a, Register b, Register c) { return fma_(a, b, c); }
  static Register min(Register a, Register b) { return min_(a, b); }
  static Register max(Register a, Register b) { return max_(a, b); }
};

}  // namespace fused_sigmoid
