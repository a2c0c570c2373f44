// A Verilated accelerator with its memory, as a C interface for ctypes.
//
// The build sets TILEWRIGHT_BUS_BYTES, and TILEWRIGHT_RESET to whether there is a port `rst` (for waves and
// coverage). Everything but the interface is hidden, so that libraries of several configurations live in one process.
// Of a design with a port `probe` it also sets TILEWRIGHT_PROBE_EVENTS and TILEWRIGHT_PROBE_LEVELS, masks of its bits, and
// TILEWRIGHT_BEATS_SHIFT and TILEWRIGHT_BEATS_CYCLES (tilewright_hw/arch/unit_log.py).

#include "Vtop.h"
#include "Vtop___024root.h"
#include "memory.h"
#include "verilated.h"

#if VM_TRACE_VCD
#include "verilated_vcd_c.h"
using TraceFile = VerilatedVcdC;
#elif VM_TRACE_FST
#include "verilated_fst_c.h"
using TraceFile = VerilatedFstC;
#endif

#if VM_COVERAGE
#include "verilated_cov.h"
#endif

#include <memory>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

using tilewright::Settings;

constexpr int LIMIT = 1, DONE = 0, FAILED = -1;
constexpr int REGISTER_CYCLES = 1000;  // more than any register access takes

// Nothing happens at the falling edge, so the model need only forget that the clock was high. That spares an
// evaluation per cycle, where Verilator calls the flag by the name known here; else false is returned.
template <class Root>
auto forget_high_clock(Root* root, int) -> decltype(root->__Vtrigprevexpr___TOP__clk__0, bool()) {
    root->__Vtrigprevexpr___TOP__clk__0 = 0;
    return true;
}
template <class Root>
bool forget_high_clock(Root*, long) {
    return false;
}

class Simulation {
  public:
    explicit Simulation(const Settings& settings) : memory_(settings) { reset(); }
    ~Simulation() {
#if VM_TRACE
        if (trace_) trace_->close();
#endif
        top_->final();
    }

    bool allocate(uint64_t size) {
        if (!memory_.bytes.allocate(size)) return false;
        reset();
        return true;
    }

    // Without a reset port, a new accelerator is a reset one, but for its memories.
    void reset() {
        if (!top_ || !TILEWRIGHT_RESET) {
            if (top_) top_->final();
            top_ = nullptr;
            context_ = std::make_unique<VerilatedContext>();
            context_->randReset(0);
            top_ = std::make_unique<Vtop>(context_.get());
        }
        memory_.attach(top_.get());
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_arvalid = 0;
        top_->s_axil_bready = top_->s_axil_rready = 1;
        top_->s_axil_awprot = top_->s_axil_arprot = 0;
        top_->s_axil_wstrb = 15;
        top_->clk = 0;
#if TILEWRIGHT_RESET
        top_->rst = 1;
        for (int i = 0; i < 2; i++) tick();
        top_->rst = 0;
#endif
        top_->eval();
    }

    // Runs until the interrupt.
    int run(uint64_t cycles) {
        for (uint64_t i = 0; i < cycles; i++) {
            if (top_->irq) return DONE;
            step();
            if (__builtin_expect(!memory_.failure.empty(), 0)) return FAILED;
        }
        return top_->irq ? DONE : LIMIT;
    }

    // Return the response, or FAILED.
    int write_register(uint32_t address, uint32_t value) {
        top_->s_axil_awaddr = address;
        top_->s_axil_wdata = value;
        top_->s_axil_awvalid = top_->s_axil_wvalid = 1;
        for (int i = 0; i < REGISTER_CYCLES; i++) {
            bool address_taken = top_->s_axil_awready, data_taken = top_->s_axil_wready;
            bool answered = top_->s_axil_bvalid;
            int response = top_->s_axil_bresp;
            step();
            if (address_taken) top_->s_axil_awvalid = 0;
            if (data_taken) top_->s_axil_wvalid = 0;
            if (answered) return memory_.failure.empty() ? response : FAILED;
        }
        memory_.failure = "the control registers do not answer a write";
        return FAILED;
    }

    int read_register(uint32_t address, uint32_t* value) {
        top_->s_axil_araddr = address;
        top_->s_axil_arvalid = 1;
        for (int i = 0; i < REGISTER_CYCLES; i++) {
            bool address_taken = top_->s_axil_arready;
            bool answered = top_->s_axil_rvalid;
            int response = top_->s_axil_rresp;
            *value = top_->s_axil_rdata;
            step();
            if (address_taken) top_->s_axil_arvalid = 0;
            if (answered) return memory_.failure.empty() ? response : FAILED;
        }
        memory_.failure = "the control registers do not answer a read";
        return FAILED;
    }

    bool trace(const char* path, uint64_t first, uint64_t last) {
#if VM_TRACE
        context_->traceEverOn(true);
        trace_ = std::make_unique<TraceFile>();
        top_->trace(trace_.get(), 99);
        trace_->open(path);
        first_ = first;
        last_ = last;
        return trace_->isOpen();
#else
        (void)path, (void)first, (void)last;
        return false;
#endif
    }

    // Writes how often each line ran and each signal toggled since the simulation was made.
    bool write_coverage(const char* path) {
#if VM_COVERAGE
        context_->coveragep()->write(path);
        return true;
#else
        (void)path;
        return false;
#endif
    }

    void check_outputs(bool on) { check_ = on; }

    void begin_log() {
        log_.clear();
        beats_.clear();
        levels_ = 0;
    }
    const std::vector<uint64_t>& log() const { return log_; }      // (cycle, bits)
    const std::vector<uint64_t>& beats() const { return beats_; }  // (first cycle, three counts)

    const char* failure() const { return memory_.failure.c_str(); }
    uint8_t* data() const { return memory_.bytes.data(); }
    uint64_t cycle() const { return cycle_; }
    bool irq() const { return top_->irq; }

  private:
    void step() {
        if (__builtin_expect(check_, 0)) {
            uint64_t before = outputs();
            memory_.step(cycle_);
            top_->eval();
            if (outputs() != before && memory_.failure.empty())
                memory_.failure = "an output depends combinationally on an input";
        } else {
            memory_.step(cycle_);
        }
#ifdef TILEWRIGHT_PROBE_EVENTS
        top_->eval();  // what follows from this cycle's inputs
        note(top_->probe);
#endif
        tick();
    }

    // Logs events and changes of levels, and counts beats.
    [[maybe_unused]] void note(uint64_t bits) {
#ifdef TILEWRIGHT_PROBE_EVENTS
        uint64_t levels = bits & TILEWRIGHT_PROBE_LEVELS;
        if (bits & TILEWRIGHT_PROBE_EVENTS || levels != levels_) {
            log_.push_back(cycle_);
            log_.push_back(bits & (TILEWRIGHT_PROBE_LEVELS | TILEWRIGHT_PROBE_EVENTS));
        }
        levels_ = levels;
        if (beats_.empty() || cycle_ - beats_[beats_.size() - 4] >= TILEWRIGHT_BEATS_CYCLES)
            beats_.insert(beats_.end(), {cycle_, 0, 0, 0});
        for (int i = 0; i < 3; i++) beats_[beats_.size() - 3 + i] += bits >> (TILEWRIGHT_BEATS_SHIFT + i) & 1;
#else
        (void)bits;
#endif
    }

    void tick() {
        top_->clk = 1;
        top_->eval();
        dump(2 * cycle_);
        top_->clk = 0;
        if (VM_TRACE || !forget_high_clock(top_->rootp, 0)) top_->eval();
        dump(2 * cycle_ + 1);
        cycle_++;
    }

    void dump(uint64_t time) {
#if VM_TRACE
        if (trace_ && cycle_ >= first_ && cycle_ <= last_) trace_->dump(time);
#else
        (void)time;
#endif
    }

    // The handshake outputs, and those that go with them.
    uint64_t outputs() const {
        uint64_t bits = 0;
        for (uint64_t value :
             {uint64_t(top_->m_axi_arvalid), uint64_t(top_->m_axi_araddr), uint64_t(top_->m_axi_arlen),
              uint64_t(top_->m_axi_rready), uint64_t(top_->m_axi_awvalid), uint64_t(top_->m_axi_awaddr),
              uint64_t(top_->m_axi_awlen), uint64_t(top_->m_axi_wvalid), uint64_t(top_->m_axi_wstrb),
              uint64_t(top_->m_axi_wlast), uint64_t(top_->m_axi_bready), uint64_t(top_->s_axil_awready),
              uint64_t(top_->s_axil_wready), uint64_t(top_->s_axil_bvalid), uint64_t(top_->s_axil_arready),
              uint64_t(top_->s_axil_rvalid), uint64_t(top_->s_axil_rdata), uint64_t(top_->irq)})
            bits = bits * 0x9E3779B97F4A7C15ull + value + (bits >> 32);
        return bits;
    }

    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vtop> top_;
    tilewright::Memory<Vtop, TILEWRIGHT_BUS_BYTES> memory_;
    uint64_t cycle_ = 0;
    bool check_ = false;
    std::vector<uint64_t> log_, beats_;
    uint64_t levels_ = 0;
#if VM_TRACE
    std::unique_ptr<TraceFile> trace_;
    uint64_t first_ = 0, last_ = 0;
#endif
};

}  // namespace

API Simulation* tilewright_create(uint64_t latency, double stall, uint64_t seed, double bandwidth) {
    return new Simulation(Settings{latency, stall, seed, bandwidth});
}
API void tilewright_destroy(Simulation* s) { delete s; }
API int tilewright_allocate(Simulation* s, uint64_t size) { return s->allocate(size); }
API void tilewright_reset(Simulation* s) { s->reset(); }
API uint8_t* tilewright_memory(Simulation* s) { return s->data(); }
API int tilewright_run(Simulation* s, uint64_t cycles) { return s->run(cycles); }
API int tilewright_irq(Simulation* s) { return s->irq(); }
API int tilewright_write_register(Simulation* s, uint32_t address, uint32_t value) {
    return s->write_register(address, value);
}
API int tilewright_read_register(Simulation* s, uint32_t address, uint32_t* value) {
    return s->read_register(address, value);
}
API const char* tilewright_failure(Simulation* s) { return s->failure(); }
API uint64_t tilewright_cycle(Simulation* s) { return s->cycle(); }
API int tilewright_trace(Simulation* s, const char* path, uint64_t first, uint64_t last) {
    return s->trace(path, first, last);
}
API int tilewright_write_coverage(Simulation* s, const char* path) { return s->write_coverage(path); }
API void tilewright_check_outputs(Simulation* s, int on) { s->check_outputs(on != 0); }
API void tilewright_begin_log(Simulation* s) { s->begin_log(); }
API const uint64_t* tilewright_log(Simulation* s, uint64_t* words) {
    *words = s->log().size();
    return s->log().data();
}
API const uint64_t* tilewright_beats(Simulation* s, uint64_t* words) {
    *words = s->beats().size();
    return s->beats().data();
}
