// The AXI4 memory behind a Verilated accelerator: latency, bandwidth, seeded random stalls, protocol checks.
//
// Once per clock cycle, before the rising edge, `step` looks at the accelerator's outputs and sets its inputs. AXI
// forbids combinational paths between the two, so one look suffices.
//
// A write's data reaches the memory when its response is given, and a read takes its data when its beat is offered:
// the latest moments that AXI allows, so that a program that forgets to wait is found out.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace tilewright {

struct Settings {
    uint64_t latency;
    double stall;
    uint64_t seed;
    double bandwidth;
};

// xorshift64*: small, fast, the same everywhere.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull) {
        if (state_ == 0) state_ = 1;
    }
    uint32_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Dull) >> 32);
    }

  private:
    uint64_t state_;
};

// The bytes: one reservation of address space, of which the system backs what is touched.
class Bytes {
  public:
    ~Bytes() { release(); }

    bool allocate(uint64_t size) {
        release();
        if (size == 0) return true;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
        flags |= MAP_NORESERVE;
#endif
        void* got = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (got == MAP_FAILED) return false;
        data_ = static_cast<uint8_t*>(got);
        size_ = size;
        return true;
    }
    uint8_t* data() const { return data_; }
    uint64_t size() const { return size_; }
    bool holds(uint64_t address, uint64_t count) const { return address < size_ && count <= size_ - address; }

  private:
    void release() {
        if (data_ != nullptr) munmap(data_, size_);
        data_ = nullptr;
        size_ = 0;
    }
    uint8_t* data_ = nullptr;
    uint64_t size_ = 0;
};

// Top: the Verilated class. BYTES: of the data bus.
template <class Top, unsigned BYTES>
class Memory {
  public:
    explicit Memory(const Settings& settings) : settings_(settings), random_(settings.seed) {
        threshold_ = static_cast<uint64_t>(settings.stall * 4294967296.0);
        buffer_.resize(size_t{SLOTS} * 256 * BYTES);
        strobes_.resize(size_t{SLOTS} * 256);
    }

    Bytes bytes;
    std::string failure;  // the first broken rule; empty: none
    uint64_t beats_read = 0, beats_written = 0;

    // Takes a new or a reset accelerator; what was outstanding is forgotten.
    void attach(Top* top) {
        top_ = top;
        failure.clear();
        reads_ = writes_ = Ring{};
        filled_ = 0;
        beat_ = 0;
        random_ = Random(settings_.seed);
        r_valid_ = b_valid_ = ar_held_ = aw_held_ = w_held_ = false;
        r_credit_ = w_credit_ = 1.0;
        top_->m_axi_arready = top_->m_axi_rvalid = top_->m_axi_rlast = 0;
        top_->m_axi_awready = top_->m_axi_wready = top_->m_axi_bvalid = 0;
        top_->m_axi_rid = top_->m_axi_bid = 0;
        top_->m_axi_rresp = top_->m_axi_bresp = 0;
    }

    // Sets the inputs of this cycle, and takes what is handed over at its end.
    void step(uint64_t cycle) {
        if (settings_.bandwidth < 1.0) {
            r_credit_ = std::min(1.0 + settings_.bandwidth, r_credit_ + settings_.bandwidth);
            w_credit_ = std::min(1.0 + settings_.bandwidth, w_credit_ + settings_.bandwidth);
        }
        read_data(cycle);
        read_address(cycle);
        write_response(cycle);
        write_data(cycle);
        write_address();
    }

  private:
    static constexpr unsigned SLOTS = 64;  // bursts that may be outstanding, per direction
    static constexpr unsigned LOG2 = BYTES == 4 ? 2 : BYTES == 8 ? 3 : BYTES == 16 ? 4 : BYTES == 32 ? 5 : 6;

    struct Burst {
        uint64_t address;  // of the bus word of the next beat
        uint64_t ready;    // the cycle from which it may be answered
        unsigned left;     // beats
        bool bad;
    };
    struct Ring {
        Burst at[SLOTS];
        uint64_t head = 0, tail = 0;
        bool empty() const { return head == tail; }
        bool full() const { return tail - head == SLOTS; }
        Burst& first() { return at[head % SLOTS]; }
        Burst& push() { return at[tail++ % SLOTS]; }
    };
    struct Address {
        uint64_t address;
        uint32_t rest;
        bool operator!=(const Address& other) const { return address != other.address || rest != other.rest; }
    };

    bool stalled() { return threshold_ != 0 && random_.next() < threshold_; }

    void fail(const char* format, ...) {
        if (!failure.empty()) return;
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        failure = text;
    }

    void check_address(const char* name, uint64_t address, unsigned len, unsigned size, unsigned burst) {
        unsigned long long shown = address;
        if (size != LOG2) fail("%s %#llx: size must be %u, not %u", name, shown, LOG2, size);
        if (burst != 1) fail("%s %#llx: the burst must be INCR, not %u", name, shown, burst);
        if ((address & 4095 & ~uint64_t{BYTES - 1}) + uint64_t{len + 1} * BYTES > 4096)
            fail("%s %#llx: %u beats of %u bytes cross 4 KiB", name, shown, len + 1, BYTES);
    }

    void check_held(const char* name, bool& held, Address& kept, bool valid, bool ready, const Address& now) {
        if (held && !valid) fail("%s: valid fell before ready came", name);
        if (held && valid && now != kept) fail("%s: the address changed before ready came", name);
        held = valid && !ready;
        if (held) kept = now;
    }

    void read_address(uint64_t cycle) {
        bool ready = !reads_.full() && !stalled();
        bool valid = top_->m_axi_arvalid;
        top_->m_axi_arready = ready;
        if (!valid && !ar_held_) return;
        Address now{top_->m_axi_araddr, uint32_t(top_->m_axi_arlen | top_->m_axi_arsize << 8 | top_->m_axi_arburst << 16)};
        check_held("AR", ar_held_, ar_kept_, valid, ready, now);
        if (!valid || !ready) return;
        check_address("AR", now.address, top_->m_axi_arlen, top_->m_axi_arsize, top_->m_axi_arburst);
        Burst& burst = reads_.push();
        burst = {now.address & ~uint64_t{BYTES - 1}, cycle + settings_.latency, top_->m_axi_arlen + 1u, false};
    }

    void read_data(uint64_t cycle) {
        if (!r_valid_) {
            top_->m_axi_rvalid = 0;
            if (reads_.empty() || reads_.first().ready > cycle || r_credit_ < 1.0 || stalled()) return;
            offer_read(reads_.first());
        }
        if (!top_->m_axi_rready) return;
        r_valid_ = false;
        beats_read++;
        Burst& burst = reads_.first();
        burst.address += BYTES;
        if (--burst.left == 0) reads_.head++;
    }

    void offer_read(const Burst& burst) {
        bool good = bytes.holds(burst.address, BYTES);
        if (good)
            std::memcpy(&top_->m_axi_rdata, bytes.data() + burst.address, BYTES);
        else
            std::memset(&top_->m_axi_rdata, 0, BYTES);
        top_->m_axi_rresp = good ? 0 : 3;
        top_->m_axi_rlast = burst.left == 1;
        top_->m_axi_rvalid = 1;
        r_valid_ = true;
        if (settings_.bandwidth < 1.0) r_credit_ -= 1.0;
    }

    void write_address() {
        bool ready = !writes_.full() && !stalled();
        bool valid = top_->m_axi_awvalid;
        top_->m_axi_awready = ready;
        if (!valid && !aw_held_) return;
        Address now{top_->m_axi_awaddr, uint32_t(top_->m_axi_awlen | top_->m_axi_awsize << 8 | top_->m_axi_awburst << 16)};
        check_held("AW", aw_held_, aw_kept_, valid, ready, now);
        if (!valid || !ready) return;
        check_address("AW", now.address, top_->m_axi_awlen, top_->m_axi_awsize, top_->m_axi_awburst);
        Burst& burst = writes_.push();
        burst = {now.address & ~uint64_t{BYTES - 1}, 0, top_->m_axi_awlen + 1u, false};
    }

    // Beats are taken once their address has been, which AXI lets a slave demand.
    void write_data(uint64_t cycle) {
        bool waiting = filled_ != writes_.tail;
        bool ready = waiting && w_credit_ >= 1.0 && !stalled();
        bool valid = top_->m_axi_wvalid;
        top_->m_axi_wready = ready;
        if (w_held_) check_word(valid);
        if (!valid) return;
        if (!ready) {
            if (!w_held_) keep_word();
            return;
        }
        w_held_ = false;
        if (settings_.bandwidth < 1.0) w_credit_ -= 1.0;
        beats_written++;
        unsigned slot = filled_ % SLOTS;
        Burst& burst = writes_.at[slot];
        unsigned place = slot * 256 + beat_++;
        std::memcpy(&buffer_[size_t{place} * BYTES], &top_->m_axi_wdata, BYTES);
        strobes_[place] = top_->m_axi_wstrb;
        if (bool(top_->m_axi_wlast) != (beat_ == burst.left))
            fail("W: last is %d at beat %u of %u", int(top_->m_axi_wlast), beat_, burst.left);
        if (beat_ != burst.left) return;
        burst.ready = cycle + settings_.latency;
        beat_ = 0;
        filled_++;
    }

    void keep_word() {
        w_held_ = true;
        std::memcpy(w_kept_, &top_->m_axi_wdata, BYTES);
        w_kept_strobe_ = top_->m_axi_wstrb;
        w_kept_last_ = top_->m_axi_wlast;
    }

    void check_word(bool valid) {
        if (!valid)
            fail("W: valid fell before ready came");
        else if (std::memcmp(w_kept_, &top_->m_axi_wdata, BYTES) != 0 || w_kept_strobe_ != top_->m_axi_wstrb ||
                 w_kept_last_ != bool(top_->m_axi_wlast))
            fail("W: the word changed before ready came");
    }

    void write_response(uint64_t cycle) {
        if (!b_valid_) {
            top_->m_axi_bvalid = 0;
            if (writes_.head == filled_ || writes_.first().ready > cycle || stalled()) return;
            top_->m_axi_bresp = commit(writes_.first(), writes_.head % SLOTS) ? 0 : 3;
            top_->m_axi_bvalid = 1;
            b_valid_ = true;
        }
        if (!top_->m_axi_bready) return;
        b_valid_ = false;
        writes_.head++;
    }

    bool commit(const Burst& burst, unsigned slot) {
        constexpr uint64_t ALL = BYTES == 64 ? ~uint64_t{0} : (uint64_t{1} << (BYTES % 64)) - 1;
        bool good = true;
        for (unsigned beat = 0; beat < burst.left; beat++) {
            uint64_t address = burst.address + uint64_t{beat} * BYTES;
            uint64_t strobe = strobes_[slot * 256 + beat];
            const uint8_t* from = &buffer_[size_t{slot * 256 + beat} * BYTES];
            if (!bytes.holds(address, BYTES)) {
                good = false;
            } else if (strobe == ALL) {
                std::memcpy(bytes.data() + address, from, BYTES);
            } else {
                for (unsigned i = 0; i < BYTES; i++)
                    if (strobe >> i & 1) bytes.data()[address + i] = from[i];
            }
        }
        return good;
    }

    Top* top_ = nullptr;
    Settings settings_;
    Random random_;
    uint64_t threshold_;
    Ring reads_, writes_;
    uint64_t filled_ = 0;  // write bursts whose beats are all there
    unsigned beat_ = 0;
    std::vector<uint8_t> buffer_;
    std::vector<uint64_t> strobes_;
    bool r_valid_ = false, b_valid_ = false, ar_held_ = false, aw_held_ = false, w_held_ = false;
    Address ar_kept_{}, aw_kept_{};
    uint8_t w_kept_[BYTES];
    uint64_t w_kept_strobe_ = 0;
    bool w_kept_last_ = false;
    double r_credit_ = 1.0, w_credit_ = 1.0;
};

}  // namespace tilewright
